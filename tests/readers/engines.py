"""Engines that read Iceberg tables, each asked in SQL of its own: ClickHouse, PyIceberg (whose rows DuckDB adds up), DuckDB, Spark and Trino.

Each finds a table through its catalog where it can, else by the location that the catalog names.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import iceberg
from tables import exact, identifier, moment, text, whole

TRINO_START_SECONDS = 180
# Without the last one times are rounded to milliseconds on their way to the client.
TRINO_HEADERS = {"X-Trino-User": "k2", "X-Trino-Time-Zone": "UTC", "X-Trino-Client-Capabilities": "PARAMETRIC_DATETIME"}


class Reader:
    """SQL that most readers understand; the others say what differs."""

    # Why a place is out of its reach, if it is.
    beyond = {}
    # What pruning is measured in.
    unit = "files"
    # What it does not know, after which stages (None: after all), and what it does instead.
    lacks = {}

    def knows(self, what, stage):
        stages, _ = self.lacks.get(what, ((), None))
        return stages is not None and stage not in stages

    def wait(self):
        """Until it can be asked."""

    def close(self):
        pass

    def reaches(self, place):
        return place.name not in self.beyond

    def literal(self, value, kind):
        if kind is moment:
            return f"TIMESTAMP '{value} UTC'"
        return text_literal(value) if kind in (text, identifier) else value

    def column(self, name, kind):
        return name

    def where(self, conditions):
        return " AND ".join(self.condition(*each) for each in conditions) or "1 = 1"

    def condition(self, name, operator, value, kind):
        return f"{name} {operator}" if value is None else f"{name} {operator} {self.literal(value, kind)}"

    def rows(self, target, columns, conditions=(), snapshot=None):
        """Rows in columns with these kinds, as a sorted list of texts, and how much was read for them."""
        listed = ", ".join(self.column(name, kind) for name, kind in columns.items())
        found, opened = self.fetch(target, f"SELECT {listed} FROM", conditions, snapshot)
        return sorted(json.dumps([kind(value) for kind, value in zip(columns.values(), row)]) for row in found), opened

    def sums(self, target, table, conditions=(), snapshot=None):
        """What the engine itself adds up: rows, sums, extremes and known values of each column, sums over nested values."""
        kinds, parts = [whole], ["count(*)"]
        for name in table.sums:
            parts.append(f"sum({name})")
            kinds.append(exact)
        for name in table.extremes():
            kind = table.columns[name]
            parts += [f"min({self.column(name, kind)})", f"max({self.column(name, kind)})", f"count({name})"]
            kinds += [kind, kind, whole]
        for what in table.nested:
            parts.append(f"sum({self.inside(what)})")
            kinds.append(exact)
        ((row,), _) = self.fetch(target, f"SELECT {', '.join(parts)} FROM", conditions, snapshot)
        return [kind(value) for kind, value in zip(kinds, row)]

    def inside(self, what):
        """`length(column)` or `column[key]`, the latter as a number."""
        match = re.fullmatch(r"length\((\w+)\)|(\w+)\[(\w+)\]", what)
        return self.length.format(match[1]) if match[1] else self.item.format(match[2], match[3])


class PyIceberg(Reader):
    length, item = "len({})", "CAST({}['{}'] AS BIGINT)"
    lacks = {"null lists": (("Spark's rewrites",), "a list of structs that is null in a file, as Spark writes it, reads as empty (its issue 3833)")}

    def __init__(self):
        import pyiceberg

        self.version = f"PyIceberg {pyiceberg.__version__}"

    def fetch(self, target, select, conditions, snapshot):
        import duckdb

        scan = self.scan(target, conditions, snapshot)
        found, opened = scan.to_arrow(), len(list(scan.plan_files()))
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("found", found)
            return arrow_rows(connection.execute(f"{select} found")), opened

    def scan(self, target, conditions, snapshot):
        named = {"snapshot_id": snapshot} if snapshot else {}
        words = [self.condition(*each) for each in conditions]
        return target.load().scan(**({"row_filter": " and ".join(words)} if words else {}), **named)

    def literal(self, value, kind):
        return text_literal(f"{value.replace(' ', 'T')}+00:00") if kind is moment else super().literal(value, kind)


class DuckDB(Reader):
    length, item = "len({})", "CAST({}['{}'] AS BIGINT)"

    def __init__(self):
        import duckdb

        self.version = f"DuckDB {duckdb.__version__}"
        self.connections = {}

    def connection(self, place):
        """Iceberg is loaded, and can reach storage and a REST catalog."""
        import duckdb

        if place.name not in self.connections:
            connection = self.connections[place.name] = duckdb.connect()
            # iceberg loads the others by itself, but would look for them on the network.
            for extension in ("httpfs", "avro", "iceberg"):
                connection.execute(f"LOAD '{iceberg.duckdb_extension(extension)}'")
            connection.execute("SET TimeZone = 'UTC'")
            s3 = place.s3
            host = urllib.parse.urlparse(s3["endpoint"]).netloc
            keys = f"KEY_ID {text_literal(s3['key'])}, SECRET {text_literal(s3['secret'])}, REGION {text_literal(s3['region'])}"
            connection.execute(f"CREATE SECRET (TYPE s3, {keys}, ENDPOINT {text_literal(host)}, URL_STYLE 'path', USE_SSL false)")
            if place.rest:
                connection.execute(f"ATTACH '' AS lake (TYPE iceberg, ENDPOINT {text_literal(place.rest)}, AUTHORIZATION_TYPE 'none')")
        return self.connections[place.name]

    def relation(self, target, snapshot):
        if target.place.rest:
            return f"lake.{target.namespace}.{target.name}" + (f" AT (VERSION => {snapshot})" if snapshot else "")
        location = target.load().metadata_location
        location = iceberg.local_path(location) if iceberg.is_local(location) else location
        return f"iceberg_scan({text_literal(location)}{f', snapshot_from_id => {snapshot}' if snapshot else ''})"

    def fetch(self, target, select, conditions, snapshot):
        query = f"{select} {self.relation(target, snapshot)} WHERE {self.where(conditions)}"
        rows = arrow_rows(self.connection(target.place).execute(query))
        told = self.connection(target.place).execute(f"EXPLAIN ANALYZE {query}").fetchall()[0][1]
        files = re.search(r"Total Files Read: (\d+)", told)
        return rows, int(files[1]) if files else None

    def literal(self, value, kind):
        return f"TIMESTAMPTZ '{value}+00'" if kind is moment else super().literal(value, kind)


class ClickHouse(Reader):
    length, item = "length({})", "toInt64({}['{}'])"
    unit = "rows"
    lacks = {
        "null lists": (None, "its arrays cannot be null; a list that is null reads as empty"),
        "a UUID": (("Spark's rewrites",), "it does not find one by a filter in files that others than k2-offload wrote (its issues 118371 and 118366)"),
    }

    def __init__(self, url):
        self.url = url
        self.version = f"ClickHouse {self.ask('SELECT version()', 'TabSeparated')[0].decode().strip()}"
        self.databases = {}

    def ask(self, query, format="JSONCompactEachRow"):
        """The answer, and how many rows the server read for it."""
        settings = {
            "wait_end_of_query": 1, "session_timezone": "UTC", "output_format_json_quote_decimals": 1, "output_format_json_quote_64bit_integers": 0,
            "output_format_json_named_tuples_as_objects": 1, "allow_database_iceberg": 1, "default_format": format,
        }
        request = urllib.request.Request(f"{self.url}/?{urllib.parse.urlencode(settings)}", query.encode())
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read(), int(json.loads(answer.headers["X-ClickHouse-Summary"])["read_rows"])
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.read().decode(errors='replace').strip()}; query: {query}") from None

    def query(self, query):
        answer, read = self.ask(query)
        return [json.loads(line) for line in answer.splitlines()], read

    def relation(self, target, snapshot):
        place = target.place
        of_snapshot = f"iceberg_snapshot_id = {snapshot}" if snapshot else ""
        if place.rest:
            return f"{self.database(place)}.`{target.namespace}.{target.name}`", of_snapshot
        loaded = target.load()
        location = loaded.location()
        # Left to itself, it takes the newest metadata file of the folder, also one that no commit made current.
        # Spark calls a file `file:/p` that others call `file:///p`.
        metadata = os.path.relpath(iceberg.local_path(loaded.metadata_location), iceberg.local_path(location))
        metadata = f"SETTINGS iceberg_metadata_file_path = {text_literal(metadata)}"
        if iceberg.is_local(location):
            return f"icebergLocal({text_literal(iceberg.local_path(location))}, {metadata})", of_snapshot
        s3 = place.s3
        words = [text_literal(each) for each in (f"{s3['endpoint']}/{location.removeprefix('s3://')}", s3["key"], s3["secret"])]
        return f"icebergS3({', '.join(words)}, {metadata})", of_snapshot

    def database(self, place):
        """Of the tables behind a REST catalog."""
        if place.name not in self.databases:
            name = self.databases[place.name] = f"lake_{uuid.uuid4().hex}"
            s3 = place.s3
            settings = f"catalog_type = 'rest', warehouse = {text_literal(place.warehouse)}, storage_endpoint = {text_literal(s3['endpoint'] + '/' + s3['bucket'])}"
            keys = f"{text_literal(s3['key'])}, {text_literal(s3['secret'])}"
            self.ask(f"CREATE DATABASE {name} ENGINE = DataLakeCatalog('{place.rest}/v1', {keys}) SETTINGS {settings}")
        return self.databases[place.name]

    def close(self):
        for name in self.databases.values():
            self.ask(f"DROP DATABASE {name}")

    def fetch(self, target, select, conditions, snapshot):
        relation, settings = self.relation(target, snapshot)
        return self.query(f"{select} {relation} WHERE {self.where(conditions)}{f' SETTINGS {settings}' if settings else ''}")

    def column(self, name, kind):
        return f"toUnixTimestamp64Micro(toDateTime64({name}, 6, 'UTC'))" if kind is moment else name

    def literal(self, value, kind):
        if kind is moment:
            return f"toDateTime64('{value}', 6, 'UTC')"
        return f"toDecimal128('{value}', 8)" if kind is exact else super().literal(value, kind)

    # What the target must hold, from the source.

    def wanted(self, database, select):
        return Wanted(self, f"(SELECT * FROM ({select}))", database)


class Wanted(Reader):
    """The source, asked as a reader is."""

    def __init__(self, clickhouse, relation, database):
        self.clickhouse, self.relation, self.database = clickhouse, relation, database
        self.length, self.item, self.column, self.literal = clickhouse.length, clickhouse.item, clickhouse.column, clickhouse.literal

    def fetch(self, target, select, conditions, snapshot):
        tables = re.sub(r"FROM (trades|silver_trades)\b", rf"FROM {self.database}.\1", self.relation)
        return self.clickhouse.query(f"{select} {tables} WHERE {self.where(conditions)}")


class Spark(Reader):
    length, item = "size({})", "CAST({}['{}'] AS BIGINT)"
    lacks = {"a UUID": (("Spark's rewrites",), "it does not find one by a filter in files with statistics of UUIDs, as others than k2-offload write them")}

    def __init__(self, python, places):
        catalogs = {place.identifier: place.for_spark() for place in places}
        script = Path(__file__).with_name("spark.py")
        environment = {**os.environ, "TZ": "UTC", "PYTHONUNBUFFERED": "1", "AWS_REGION": places[0].s3["region"]}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [python, script, json.dumps(catalogs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )

    def wait(self):
        self.version = self.answer()["version"]

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.log.seek(0)
        raise RuntimeError(f"Spark ended\n{self.log.read().decode(errors='replace')[-3000:]}")

    def ask(self, query):
        self.process.stdin.write(json.dumps(query) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}; query: {query}")
        return answer

    def relation(self, target, snapshot):
        return f"{self.table(target)}{f' VERSION AS OF {snapshot}' if snapshot else ''}"

    def table(self, target):
        return f"{target.place.identifier}.{target.namespace}.{target.name}"

    def fetch(self, target, select, conditions, snapshot):
        answer = self.ask(f"{select} {self.relation(target, snapshot)} WHERE {self.where(conditions)}")
        return answer["rows"], answer["files"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Trino(Reader):
    length, item = "cardinality({})", "CAST(element_at({}, '{}') AS bigint)"
    unit = "rows"

    def __init__(self, folder, java, places):
        self.beyond = {place.name: place.beyond_trino for place in places if place.beyond_trino}
        self.data = tempfile.mkdtemp(prefix="k2-trino-")
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        etc = Path(self.data) / "etc"
        (etc / "catalog").mkdir(parents=True)
        for name, lines in {
            "config.properties": [
                "coordinator=true", "node-scheduler.include-coordinator=true", f"http-server.http.port={port}", f"discovery.uri={self.url}",
                "node.internal-address=127.0.0.1", "query.max-memory=300MB", "query.max-memory-per-node=300MB", "memory.heap-headroom-per-node=200MB",
            ],
            "node.properties": ["node.environment=test", f"node.data-dir={self.data}/data"],
            "jvm.config": ["-Xmx1200M", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8"],
            **{f"catalog/{place.identifier}.properties": place.for_trino() for place in places if self.reaches(place)},
        }.items():
            (etc / name).write_text("\n".join(lines) + "\n")
        environment = {**os.environ, "JAVA_HOME": java, "PATH": f"{java}/bin:{os.environ['PATH']}"}
        self.log = open(f"{self.data}/log", "wb+")
        self.process = subprocess.Popen([f"{folder}/bin/launcher", "run", "--etc-dir", etc], stdout=self.log, stderr=self.log, env=environment, start_new_session=True)

    def wait(self):
        deadline = time.monotonic() + TRINO_START_SECONDS
        while not self.has_started():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                told = [line for line in self.log.read().decode(errors="replace").splitlines() if re.search(r"ERROR|^\d+\)|Caused by", line)]
                raise RuntimeError("\n".join(["Trino did not start", *told]))
            time.sleep(0.5)
        self.version = f"Trino {self.get('/v1/info')['nodeVersion']['version']}"

    def has_started(self):
        try:
            return not self.get("/v1/info")["starting"]
        except OSError:
            return False

    def get(self, path, body=None):
        address = path if path.startswith("http") else self.url + path
        request = urllib.request.Request(address, body, TRINO_HEADERS)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def ask(self, query):
        """Rows, and how many the connector read."""
        answer, rows = self.get("/v1/statement", query.encode()), []
        while True:
            if "error" in answer:
                raise RuntimeError(f"{answer['error']['message']}; query: {query}")
            rows += answer.get("data", [])
            if "nextUri" not in answer:
                return rows, answer["stats"]["processedRows"]
            answer = self.get(answer["nextUri"])

    def relation(self, target, snapshot):
        return f"{self.table(target)}{f' FOR VERSION AS OF {snapshot}' if snapshot else ''}"

    def table(self, target):
        return f"{target.place.identifier}.{target.namespace}.{target.name}"

    def fetch(self, target, select, conditions, snapshot):
        return self.ask(f"{select} {self.relation(target, snapshot)} WHERE {self.where(conditions)}")

    def literal(self, value, kind):
        types = {exact: "DECIMAL", identifier: "UUID"}
        return f"{types[kind]} '{value}'" if kind in types else super().literal(value, kind)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.data)


def arrow_rows(answer):
    return [list(row.values()) for row in answer.to_arrow_table().to_pylist()]


def text_literal(value):
    return "'" + value.replace("'", "''") + "'"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
