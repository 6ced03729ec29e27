"""Who reads what passes wrote, and what is left to passes after others wrote on: one place (catalog and storage), all readers.

    python matrix.py --binary target/debug/k2-offload [--place sqlite-file]... [--spark PYTHON] [--trino DIR --java HOME] [--markdown]

Three tables leave ClickHouse: bronze (a partition a day), silver (nested columns; day, exchange and asset class) and gold (candles, computed by a query;
month and exchange). After two days their sources get a column more, a third day leaves. Then PyIceberg writes on, and Spark where it is there, with
passes before and after. At each stage every reader is asked for counts, sums, nested values, whole rows, filtered rows, and the rows before the new
column; ClickHouse's own answer over the source is what each must find. Prints what differs, exit code 1 then.

Servers are those of the variables K2_TEST_*, which scripts/clickhouse and scripts/lake give.
"""

import argparse
import contextlib
import datetime
import decimal
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import iceberg

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 1000
TRINO_START_SECONDS = 180
# Without the last one times are rounded to milliseconds on their way to the client.
TRINO_HEADERS = {"X-Trino-User": "k2", "X-Trino-Time-Zone": "UTC", "X-Trino-Client-Capabilities": "PARAMETRIC_DATETIME"}


# --- values, the same whoever read them


def whole(value):
    return None if value is None else int(value)


def text(value):
    return None if value is None else str(value)


def identifier(value):
    """A UUID: readers do not agree how these are ordered."""
    return text(value)


def flag(value):
    return None if value is None else value in (True, 1, "true")


def exact(value):
    return None if value is None else f"{decimal.Decimal(str(value)).normalize():f}"


def moment(value):
    """Microseconds since 1970."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(re.sub(r" UTC$", "+00:00", value))
    value = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
    return (value - datetime.datetime.fromtimestamp(0, datetime.timezone.utc)) // datetime.timedelta(microseconds=1)


def texts(value):
    return None if value is None else [str(each) for each in value]


def pairs(value):
    return None if value is None else sorted([str(k), str(v)] for k, v in (value.items() if isinstance(value, dict) else value))


def fees(value):
    """A list of structs of a text and a decimal; JSON of one where ClickHouse would not let it be null."""
    value = json.loads(value, parse_float=decimal.Decimal) if isinstance(value, str) else value
    fields = lambda each: [each["kind"], each["amount"]] if isinstance(each, dict) else each
    return None if value is None else [[str(kind), exact(amount)] for kind, amount in map(fields, value)]


# --- tables


class Table:
    """A table as readers see it: its columns, the last of which came later, and what they are asked. Of `filters` each must spare a reader something;
    `searches` are for values that may be anywhere."""

    def __init__(self, columns, sums, nested, filters, searches):
        self.columns, self.sums, self.nested, self.filters, self.searches = columns, sums, nested, filters, searches

    def first_columns(self):
        """Those of the first schema."""
        return dict(list(self.columns.items())[:-1])

    def extremes(self):
        return [name for name, kind in self.first_columns().items() if kind in (moment, exact, whole, text)]


DECIMALS = ("price", "quantity", "quote_volume")
# Filters are lists of (column, operator, value, kind), all of which must hold.
DAY_3 = ("2024-03-01 00:00:00", "2024-03-02 00:00:00")
TABLES = {
    "bronze": Table(
        columns={
            "exchange_timestamp": moment, "sequence_number": whole, "symbol": text, "price": exact, "quantity": exact, "quote_volume": exact,
            "event_time": moment, "kafka_offset": whole, "kafka_partition": whole, "ingestion_timestamp": moment, "venue": text,
        },
        sums=DECIMALS,
        nested=[],
        filters={
            "a partition": [("exchange_timestamp", ">=", DAY_3[0], moment), ("exchange_timestamp", "<", DAY_3[1], moment)],
            "bounds": [("event_time", "<", "2024-02-28 23:00:00", moment), ("symbol", "=", "ETH-USD", text)],
        },
        searches={
            "a later column": [("venue", "=", "spot", text)],
            "nulls of a later column": [("venue", "IS NULL", None, text)],
            "a wider integer": [("kafka_partition", ">=", "15", whole)],
            "a wider decimal": [("quantity", "<", "10.50000000", exact)],
        },
    ),
    "silver": Table(
        columns={
            "message_id": identifier, "trade_id": text, "exchange": text, "symbol": text, "canonical_symbol": text, "asset_class": text, "currency": text,
            "price": exact, "quantity": exact, "quote_volume": exact, "side": text, "trade_conditions": texts, "timestamp": moment,
            "ingestion_timestamp": moment, "processed_at": moment, "source_sequence": whole, "platform_sequence": whole, "vendor_data": pairs,
            "is_valid": flag, "validation_errors": texts, "fees": fees,
        },
        sums=DECIMALS,
        nested=["length(trade_conditions)", "length(validation_errors)", "vendor_data[n]"],
        filters={
            "a partition": [("timestamp", ">=", DAY_3[0], moment), ("timestamp", "<", DAY_3[1], moment), ("exchange", "=", "kraken", text)],
            "bounds": [("price", "<", "-400.00000000", exact)],
        },
        searches={
            "a UUID": [("message_id", "=", "005c378f-5bc6-182f-f3f9-1f97adb4265c", identifier)],
            "nulls": [("source_sequence", "IS NULL", None, whole), ("side", "=", "SELL", text)],
            "a boolean": [("is_valid", "=", "false", flag), ("platform_sequence", "<", "300", whole)],
            "no nulls": [("source_sequence", "IS NOT NULL", None, whole), ("asset_class", "=", "crypto", text)],
            "a large decimal": [("quote_volume", ">", "1234567890123456789.50000000", exact)],
        },
    ),
    "gold": Table(
        columns={"exchange": text, "canonical_symbol": text, "window_start": moment, "high_price": exact, "low_price": exact, "volume": exact, "trade_count": whole, "open_time": moment},
        sums=("high_price", "low_price", "volume", "trade_count"),
        nested=[],
        filters={
            "a partition": [("window_start", ">=", DAY_3[0], moment), ("exchange", "=", "kraken", text)],
            "bounds": [("window_start", "<", "2024-02-28 12:00:00", moment)],
        },
        searches={"a later column": [("open_time", ">=", "2024-03-01 05:00:00", moment)], "nulls of a later column": [("open_time", "IS NULL", None, moment)]},
    ),
}


# --- the source


SOURCES = [
    """CREATE TABLE trades (exchange_timestamp DateTime64(3), sequence_number UInt64, symbol String, price Decimal(18, 8), quantity Decimal(18, 8),
       quote_volume Decimal(18, 8), event_time DateTime64(3), kafka_offset UInt64, kafka_partition UInt16, ingestion_timestamp DateTime)
       ENGINE = MergeTree ORDER BY (exchange_timestamp, sequence_number)""",
    """CREATE TABLE silver_trades (message_id UUID, trade_id String, exchange LowCardinality(String), symbol LowCardinality(String),
       canonical_symbol LowCardinality(String), asset_class Enum8('equities' = 1, 'crypto' = 2, 'futures' = 3, 'options' = 4),
       currency LowCardinality(String), price Decimal128(8), quantity Decimal128(8), quote_volume Decimal128(8),
       side Enum8('BUY' = 1, 'SELL' = 2, 'SELL_SHORT' = 3, 'UNKNOWN' = 4), trade_conditions Array(String), timestamp DateTime64(6, 'UTC'),
       ingestion_timestamp DateTime64(6, 'UTC'), processed_at DateTime64(6, 'UTC'), source_sequence Nullable(UInt64),
       platform_sequence Nullable(UInt64), vendor_data Map(String, String), is_valid Bool, validation_errors Array(String))
       ENGINE = MergeTree PARTITION BY (exchange, asset_class, toYYYYMMDD(timestamp)) ORDER BY (exchange, asset_class, canonical_symbol, timestamp)""",
]
# The columns that come later, in which rows that have left before are null; and wider types.
LATER = [
    "ALTER TABLE trades MODIFY COLUMN kafka_partition UInt32, MODIFY COLUMN quantity Decimal(30, 8)",
    "ALTER TABLE trades ADD COLUMN venue LowCardinality(String) DEFAULT 'spot'",
    "ALTER TABLE silver_trades ADD COLUMN fees Array(Tuple(kind String, amount Decimal(18, 8)))",
]
CANDLES = """SELECT exchange, canonical_symbol, toStartOfHour(timestamp, 'UTC') AS window_start, max(price) AS high_price, min(price) AS low_price,
 sum(quantity) AS volume, count() AS trade_count{more} FROM silver_trades WHERE {where} GROUP BY exchange, canonical_symbol, window_start"""
MORE = ", min(timestamp) AS open_time"


def trades(day):
    """A day of bronze trades: four share a millisecond, and two of these are equal in every column."""
    return f"""INSERT INTO trades (exchange_timestamp, sequence_number, symbol, price, quantity, quote_volume, event_time, kafka_offset, kafka_partition, ingestion_timestamp)
        SELECT ts, cityHash64(n) % 1000, ['BTC-USD', 'ETH-USD', 'SOL-USD'][n % 3 + 1], CAST(cityHash64(n, 'price') % 100000000, 'Decimal(18, 8)') / 1000,
               CAST(cityHash64(n, 'quantity') % 1000000, 'Decimal(18, 8)') / 10000, -CAST(cityHash64(n, 'volume') % 1000000000, 'Decimal(18, 8)') / 7,
               ts + toIntervalMillisecond(n % 50), n % 2, n % 16, toDateTime(ts, 'UTC') + 1
        FROM (SELECT number - if(number % 10 = 3, 1, 0) AS n, toDateTime64('{day} 10:00:00', 3, 'UTC')
              + toIntervalMillisecond(intDiv(number, 10) * 5000 + if(number % 10 < 4, 0, number % 10)) AS ts FROM numbers(300))"""


def silver_trades(day, number):
    """A day of trades of three exchanges, one every two minutes from 00:00 on."""
    return f"""INSERT INTO silver_trades (message_id, trade_id, exchange, symbol, canonical_symbol, asset_class, currency, price, quantity, quote_volume, side, trade_conditions,
               timestamp, ingestion_timestamp, processed_at, source_sequence, platform_sequence, vendor_data, is_valid, validation_errors)
        SELECT reinterpretAsUUID(sipHash128(n)), toString(n), ['binance', 'kraken', 'coinbase'][1 + n % 3] AS ex, upper(ex), ex, 'crypto', 'USD',
               toDecimal128(n, 8) - toDecimal128('500.00000001', 8), toDecimal128(n, 8) / 7, toDecimal128('12345678901234567890.12345678', 8) / (n + 1),
               if(n % 2, 'BUY', 'SELL'), if(n % 5 = 0, ['a', 'ü', ''], []), toDateTime64('{day} 00:00:00', 6, 'UTC') + number * 120 + toIntervalMicrosecond(n) AS at,
               at + 1, at + 2, if(n % 3 = 0, NULL, n), n, map('n', toString(n), 'p', 'ß'), n % 9 != 0, if(n % 9 = 0, ['odd lot'], [])
        FROM (SELECT number, number + {number} AS n FROM numbers(300))"""


def config(place, url, database, namespace, has_later):
    query = CANDLES.replace("{more}", MORE if has_later else "").replace("{where}", "timestamp >= {low} AND timestamp < {high}")
    return f"""
[clickhouse]
url = '{url}'
database = '{database}'

[catalog]
{place.config}

[defaults]
settle_delay = '0s'

[[table]]
source = 'trades'
target = '{namespace}.bronze'
cursor = 'exchange_timestamp'
layer = 'bronze'
partition_by = ['day(exchange_timestamp)']
sort_by = ['symbol', 'price desc']
bloom_filter = ['symbol']

[[table]]
source = 'silver_trades'
target = '{namespace}.silver'
cursor = 'timestamp'
layer = 'silver'
key = ['exchange', 'trade_id']
partition_by = ['day(timestamp)', 'exchange', 'asset_class']

[[table]]
name = 'candles'
query = \"\"\"{query}\"\"\"
target = '{namespace}.gold'
cursor = 'window_start'
layer = 'gold'
key = ['exchange', 'canonical_symbol', 'window_start']
window = '1h'
start_at = '2024-02-28T00:00:00Z'
partition_by = ['month(window_start)', 'exchange']
"""


def wanted(name, has_later, has_null_lists=True):
    """SELECT of all rows that a target must hold, for a reader that knows lists that are null, or for one that takes them for empty."""
    later = "toDateTime64('2024-03-01 00:00:00', 6, 'UTC')"
    if name == "bronze":
        return f"SELECT * REPLACE (if(exchange_timestamp < {later}, NULL, toString(venue)) AS venue) FROM trades" if has_later else "SELECT * FROM trades"
    if name == "silver":
        none = "null" if has_null_lists else "[]"
        return f"SELECT * REPLACE (if(timestamp < {later}, '{none}', toJSONString(fees)) AS fees) FROM silver_trades" if has_later else "SELECT * FROM silver_trades"
    candles = CANDLES.format(more=MORE if has_later else "", where="1")
    return f"SELECT * REPLACE (if(window_start < {later}, NULL, open_time) AS open_time) FROM ({candles})" if has_later else candles


# --- readers: each is asked in SQL of its own, but PyIceberg, whose rows DuckDB adds up


class Reader:
    """SQL that most readers understand; the others say what differs."""

    # Why a place is out of its reach, if it is.
    beyond = {}
    # What pruning is measured in.
    unit = "files"
    has_null_lists = True

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
    # Its arrays cannot be null.
    has_null_lists = False

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
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# --- places


class Place:
    """A catalog and a storage, as everybody names them."""

    def __init__(self, name, folder):
        os.makedirs(folder)
        self.name, self.identifier = name, name.replace("-", "_")
        variable = lambda part: os.environ[f"K2_TEST_{part}"]
        self.s3 = {
            "endpoint": variable("S3_URL"), "bucket": variable("S3_BUCKET"), "region": variable("S3_REGION"),
            "key": variable("S3_ACCESS_KEY"), "secret": variable("S3_SECRET_KEY"),
        }
        catalog, storage = name.split("-")
        mark = f"matrix_{uuid.uuid4().hex}"
        self.folder, self.database, self.rest = folder, None, None
        self.namespace = mark if catalog == "rest" else "cold"
        self.warehouse = f"{folder}/warehouse" if storage == "file" else f"s3://{self.s3['bucket']}/{mark}"
        self.environment = {"AWS_ACCESS_KEY_ID": self.s3["key"], "AWS_SECRET_ACCESS_KEY": self.s3["secret"]}
        if catalog == "sqlite":
            self.uri = f"sqlite:///{folder}/catalog.db"
            self.config = f"uri = '{self.uri}'"
            self.jdbc = f"jdbc:sqlite:{folder}/catalog.db"
        elif catalog == "postgres":
            self.server = variable("PG_URL")
            self.database = mark
            address = urllib.parse.urlparse(self.server)
            self.user, self.password = address.username, address.password
            at = f"{address.hostname}:{address.port}/{mark}"
            self.uri = f"postgresql+psycopg2://{self.user}:{self.password}@{at}"
            self.config = f"uri = 'postgresql://{self.user}@{at}?sslmode=disable'\npassword_env = 'LAKE_PASSWORD'"
            self.environment["LAKE_PASSWORD"] = self.password
            self.jdbc = f"jdbc:postgresql://{at}"
            self.psql(f"CREATE DATABASE {mark}")
        else:
            self.uri = self.rest = variable("REST_URL")
            self.warehouse = variable("REST_WAREHOUSE")
            self.config = f"type = 'rest'\nuri = '{self.uri}'"
        # Iceberg's JDBC catalog finds tables by the name that its engine gives it.
        self.config += f"\nname = '{self.identifier}'\nwarehouse = '{self.warehouse}'"
        if storage == "s3":
            s3 = {"s3.endpoint": self.s3["endpoint"], "s3.region": self.s3["region"], "s3.path-style-access": "true"}
            self.config += "\nproperties = { " + ", ".join(f"\"{key}\" = '{value}'" for key, value in s3.items()) + " }"
        self.beyond_trino = "its file systems know no `file:` without a Hadoop plugin" if storage == "file" else None

    def psql(self, statement):
        subprocess.run([os.environ["K2_TEST_PSQL"], "-qtAX", "-d", self.server, "-c", statement], check=True, stdout=subprocess.DEVNULL)

    def close(self):
        if self.database:
            self.psql(f"DROP DATABASE {self.database} WITH (FORCE)")

    def for_pyiceberg(self):
        s3 = self.s3
        keys = {"s3.endpoint": s3["endpoint"], "s3.region": s3["region"], "s3.access-key-id": s3["key"], "s3.secret-access-key": s3["secret"]}
        kind = {"type": "rest", "warehouse": self.warehouse} if self.rest else {"type": "sql"}
        return {"name": self.identifier, "uri": self.uri, **kind, **keys}

    def for_spark(self):
        s3 = self.s3
        storage = {} if self.name.endswith("file") else {
            "io-impl": "org.apache.iceberg.aws.s3.S3FileIO", "s3.endpoint": s3["endpoint"], "s3.path-style-access": "true",
            "s3.access-key-id": s3["key"], "s3.secret-access-key": s3["secret"], "client.region": s3["region"],
        }
        if self.rest:
            return {"type": "rest", "uri": self.rest, "warehouse": self.warehouse, **storage}
        catalog = {"catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog", "uri": self.jdbc, "warehouse": self.warehouse}
        user = {"jdbc.user": self.user, "jdbc.password": self.password} if self.database else {}
        return {**catalog, **user, **storage}

    def for_trino(self):
        s3 = self.s3
        storage = [
            "fs.native-s3.enabled=true", f"s3.endpoint={s3['endpoint']}", f"s3.region={s3['region']}", "s3.path-style-access=true",
            f"s3.aws-access-key={s3['key']}", f"s3.aws-secret-key={s3['secret']}",
        ]
        if self.rest:
            catalog = ["iceberg.catalog.type=rest", f"iceberg.rest-catalog.uri={self.rest}", f"iceberg.rest-catalog.warehouse={self.warehouse}"]
        else:
            jdbc = {"driver-class": "org.postgresql.Driver" if self.database else "org.sqlite.JDBC", "connection-url": self.jdbc, "catalog-name": self.identifier, "default-warehouse-dir": self.warehouse}
            if self.database:
                jdbc |= {"connection-user": self.user, "connection-password": self.password}
            catalog = ["iceberg.catalog.type=jdbc", *(f"iceberg.jdbc-catalog.{key}={value}" for key, value in jdbc.items())]
        return ["connector.name=iceberg", *catalog, *storage]


class Target:
    def __init__(self, place, name):
        self.place, self.namespace, self.name = place, place.namespace, name

    def load(self):
        return iceberg.load(self.place.for_pyiceberg(), self.namespace, self.name)

    def ask(self, command, **arguments):
        """A command of iceberg.py."""
        return command(self.place.for_pyiceberg(), self.namespace, self.name, **arguments)


# --- the story of a place


class Story:
    """Passes, other writers, and what readers find after each stage."""

    def __init__(self, place, binary, clickhouse, readers):
        self.place, self.binary, self.clickhouse, self.readers = place, binary, clickhouse, readers
        self.database = f"matrix_{uuid.uuid4().hex}"
        self.targets = {name: Target(place, name) for name in TABLES}
        self.results, self.before, self.begin = [], {}, time.monotonic()

    def sql(self, statement):
        request = urllib.request.Request(f"{self.clickhouse.url}/?database={self.database}", statement.encode())
        try:
            urllib.request.urlopen(request).read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.read().decode(errors='replace')}; query: {statement}") from None

    def k2(self, *arguments, code=0, says=(), form="json"):
        """A command of ours, which must end with this code and say this; its document, if it prints one."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("K2_", "AWS_"))}
        command = [self.binary, "-c", f"{self.place.folder}/offload.toml", "--format", form, *arguments]
        done = subprocess.run(command, env={**environment, **self.place.environment}, capture_output=True, text=True)
        missing = [words for words in says if words not in done.stdout + done.stderr]
        if done.returncode != code or missing:
            raise AssertionError(f"{self.place.name}: {' '.join(arguments)}: exit code {done.returncode}, wanted {code} and {missing}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout) if form == "json" else None

    def audit(self, *arguments, code=0, says=()):
        self.k2("audit", "--checksum", *arguments, code=code, says=says, form="text")

    def configure(self, has_later):
        text = config(self.place, self.clickhouse.url, self.database, self.place.namespace, has_later)
        Path(self.place.folder, "offload.toml").write_text(text)

    def passes(self):
        self.clickhouse.ask(f"CREATE DATABASE {self.database}")
        for statement in SOURCES:
            self.sql(statement)
        self.configure(False)
        self.k2("init-tables")
        for day in (28, 29):
            self.sql(trades(f"2024-02-{day}"))
            self.sql(silver_trades(f"2024-02-{day}", 300 * (day - 28)))
            self.k2("run")
        self.before = {name: target.load().metadata.current_snapshot_id for name, target in self.targets.items()}
        self.expected_before = {name: self.expected(name, False, True) for name in TABLES}
        for statement in LATER:
            self.sql(statement)
        self.configure(True)
        self.new_day("2024-03-01", 600)
        self.k2("run")
        self.audit()
        self.look("passes")

    def pyiceberg_writes_on(self):
        bronze, silver, gold = self.targets.values()
        # Rows of another writer are no reason to leave any of ours out, and are told.
        bronze.ask(iceberg.append, rows=5, micros=moment("2024-03-01 12:00:00"))
        self.new_day("2024-03-02", 900)
        self.k2("run")
        self.audit(code=3, says=["0 missing, 5 extra"])
        bronze.ask(iceberg.delete, filter="symbol >= 'foreign' and symbol < 'foreigo'")
        self.audit()
        # Rows of ours that others delete: one in fifty of a file by position (merge on read), and an hour of an exchange (copy on write).
        bronze.ask(iceberg.delete_positions, every=50, filter="exchange_timestamp >= '2024-03-02T00:00:00+00:00'")
        silver.ask(iceberg.delete, filter="exchange == 'kraken' and timestamp >= '2024-03-02T05:00:00+00:00' and timestamp < '2024-03-02T06:00:00+00:00'")
        gold.ask(iceberg.expire)
        self.before["gold"] = None
        self.new_day("2024-03-03", 1200)
        self.rows_are_missed({"bronze": (6 + 5, 6), "silver": (10, 10)})
        self.look("PyIceberg")

    def rows_are_missed(self, deleted):
        """Others deleted so many rows, of which so many were ours: new rows leave, all commands tell it, a repair brings ours back, and a reset
        acknowledges it."""
        told = [f"{rows} rows were deleted" for rows, _ in deleted.values()]
        tables = {table["target"]: table for table in self.k2("run", code=3, says=told)["tables"]}
        self.audit(code=3, says=[f"{ours} missing, 0 extra" for _, ours in deleted.values()])
        self.audit("--repair")
        for name in deleted:
            target = f"{self.place.namespace}.{name}"
            self.k2("watermark", "reset", "--table", target, "--to", tables[target]["watermark"], "--yes")
        self.k2("run")
        self.audit()

    def spark_writes_on(self, spark):
        bronze, silver, gold = self.targets.values()
        names = {target.name: spark.table(target) for target in self.targets.values()}
        for target, mode in ((bronze, "merge-on-read"), (silver, "copy-on-write"), (gold, "merge-on-read")):
            spark.ask(f"ALTER TABLE {names[target.name]} SET TBLPROPERTIES ('write.delete.mode' = '{mode}')")
        columns = ", ".join("concat('spark ', symbol)" if name == "symbol" else name for name in TABLES["bronze"].columns)
        some = "exchange_timestamp >= TIMESTAMP '2024-03-03 10:00:00 UTC' ORDER BY exchange_timestamp, sequence_number LIMIT 7"
        spark.ask(f"INSERT INTO {names['bronze']} SELECT {columns} FROM {names['bronze']} WHERE {some}")
        self.new_day("2024-03-04", 1500)
        self.k2("run")
        self.audit(code=3, says=["0 missing, 7 extra"])
        spark.ask(f"DELETE FROM {names['bronze']} WHERE symbol LIKE 'spark %'")
        self.audit()
        spark.ask(f"DELETE FROM {names['bronze']} WHERE exchange_timestamp = TIMESTAMP '2024-03-04 10:00:25 UTC'")
        spark.ask(f"DELETE FROM {names['silver']} WHERE exchange = 'binance' AND hour(timestamp) = 3 AND timestamp >= TIMESTAMP '2024-03-04 00:00:00 UTC'")
        spark.ask(f"DELETE FROM {names['gold']} WHERE exchange = 'kraken' AND window_start = TIMESTAMP '2024-03-04 02:00:00 UTC'")
        before_last = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M:%S.%f}"
        self.new_day("2024-03-05", 1800)
        self.rows_are_missed({"bronze": (4 + 7, 4), "silver": (10, 10), "gold": (1, 1)})
        self.look("Spark, deletes")
        procedures = {
            "rewrite_data_files": "options => map('rewrite-all', 'true')",
            "rewrite_position_delete_files": "options => map('rewrite-all', 'true')",
            "rewrite_manifests": "use_caching => false",
            "expire_snapshots": f"older_than => TIMESTAMP '{before_last}'",
        }
        for procedure, option in procedures.items():
            for target in self.targets.values():
                spark.ask(f"CALL {self.place.identifier}.system.{procedure}(table => '{target.namespace}.{target.name}', {option})")
            # No maintenance looks like rows that somebody deleted.
            self.k2("run")
        self.before = dict.fromkeys(self.before)
        self.audit()
        self.new_day("2024-03-06", 2100)
        # Late, among rows that Spark has written anew.
        self.sql(trades("2024-03-05").replace("numbers(300)", "numbers(20)").replace("cityHash64(n) % 1000", "cityHash64(n, 'late') % 1000"))
        (late, _, _) = self.k2("run")["tables"]
        if late["rows_late"] != 20:
            raise AssertionError(f"{self.place.name}: 20 rows were late, {late}")
        self.audit()
        self.look("Spark, rewrites")

    def new_day(self, day, number):
        self.sql(trades(day))
        self.sql(silver_trades(day, number))
        self.sql(f"ALTER TABLE silver_trades UPDATE fees = [('maker', price / 1000), ('täker', -1.5)] WHERE trade_id > '' AND toDate(timestamp, 'UTC') = '{day}' SETTINGS mutations_sync = 2")

    def expected(self, name, has_later, has_null_lists):
        table, source = TABLES[name], self.clickhouse.wanted(self.database, wanted(name, has_later, has_null_lists))
        columns = table.columns if has_later else table.first_columns()
        return {
            "sums": source.sums(None, table),
            "rows": source.rows(None, columns)[0],
            "found": {what: source.rows(None, columns, conditions)[0] for what, conditions in (table.filters | table.searches).items()} if has_later else None,
        }

    def look(self, stage):
        """Every reader looks at every table."""
        print(f"{self.place.name}: {stage}, after {time.monotonic() - self.begin:.0f} s", file=sys.stderr)
        expected = {nulls: {name: self.expected(name, True, nulls) for name in TABLES} for nulls in (True, False)}
        for reader in self.readers:
            if not reader.reaches(self.place):
                continue
            for name, table in TABLES.items():
                for check, compare in (("sums", self.sums), ("rows", self.rows), ("travel", self.travel)):
                    # Expired.
                    if check == "travel" and self.before[name] is None:
                        continue
                    told, difference = None, None
                    try:
                        told = compare(reader, name, table, expected[reader.has_null_lists][name])
                    except Exception as error:
                        difference = f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS]
                    self.results.append({
                        "place": self.place.name, "stage": stage, "reader": reader.version, "table": name, "check": check, "told": told,
                        "difference": difference,
                    })

    def sums(self, reader, name, table, expected):
        same(reader.sums(self.targets[name], table), expected["sums"])

    def rows(self, reader, name, table, expected):
        """All of them, those of each filter, for which less must be read, and those of each search."""
        rows, all = reader.rows(self.targets[name], table.columns)
        same(rows, expected["rows"])
        opened = {}
        for what, conditions in (table.filters | table.searches).items():
            rows, some = reader.rows(self.targets[name], table.columns, conditions)
            same(rows, expected["found"][what], what)
            if what in table.filters and some >= all:
                raise AssertionError(f"{what}: {some} of {all} {reader.unit} were read")
            opened[what] = f"{some} of {all} {reader.unit}"
            if not expected["found"][what]:
                raise AssertionError(f"{what}: nothing is to be found")
        return opened

    def travel(self, reader, name, table, expected):
        snapshot, before = self.before[name], self.expected_before[name]
        same(reader.sums(self.targets[name], table, snapshot=snapshot), before["sums"])
        same(reader.rows(self.targets[name], table.first_columns(), snapshot=snapshot)[0], before["rows"])

    def close(self):
        self.clickhouse.ask(f"DROP DATABASE IF EXISTS {self.database}")


def same(have, want, what="all"):
    if have != want:
        differ = [f"{h} instead of {w}" for h, w in zip(have, want) if h != w][:SHOWN_ROWS]
        raise AssertionError("; ".join([f"{what}: {len(have)} instead of {len(want)}", *differ]))


# --- what is printed


PLACES = {"sqlite-file": "SQLite, files", "sqlite-s3": "SQLite, S3", "postgres-s3": "PostgreSQL, S3", "rest-s3": "REST, S3"}


def markdown(results, readers, places):
    """A line for each reader, a column for each place: how many checks it passed, and what it read of silver for one partition."""
    print(f"| reader | {' | '.join(PLACES[place.name] for place in places)} |")
    print(f"|---|{'---|' * len(places)}")
    for reader in readers:
        print(f"| {reader.version} | {' | '.join(cell(results, reader, place) for place in places)} |")


def cell(results, reader, place):
    mine = [r for r in results if (r["reader"], r["place"]) == (reader.version, place.name)]
    if not mine:
        return f"no: {reader.beyond[place.name]}"
    failed = [f"{r['table']} {r['check']}" for r in mine if r["difference"]]
    pruned = [r["told"]["a partition"] for r in mine if r["check"] == "rows" and r["table"] == "silver" and not r["difference"]]
    return f"**{len(failed)} of {len(mine)} checks failed**" if failed else f"{len(mine)} checks; {pruned[0]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--place", action="append", choices=PLACES)
    parser.add_argument("--spark", help="a Python with Spark")
    parser.add_argument("--trino", help="the folder of Trino")
    parser.add_argument("--java", help="the folder of its JDK")
    arguments = parser.parse_args()
    # Ends as an error does, so that what has been started is ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results, failures = [], []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-matrix-"))
        places = [stack.enter_context(contextlib.closing(Place(name, f"{folder}/{name}"))) for name in arguments.place or PLACES]
        clickhouse = ClickHouse(os.environ["K2_TEST_CLICKHOUSE"])
        spark = Spark(arguments.spark, places) if arguments.spark else None
        trino = Trino(arguments.trino, arguments.java, places) if arguments.trino else None
        readers = [each for each in (clickhouse, PyIceberg(), DuckDB(), spark, trino) if each]
        for reader in readers:
            stack.enter_context(contextlib.closing(reader))
        # They started side by side.
        for reader in readers:
            reader.wait()
        for place in places:
            story = Story(place, os.path.abspath(arguments.binary), clickhouse, readers)
            stack.enter_context(contextlib.closing(story))
            try:
                story.passes()
                story.pyiceberg_writes_on()
                if spark:
                    story.spark_writes_on(spark)
            except AssertionError as failure:
                failures.append(str(failure))
            results += story.results
            print(f"{place.name}: {len(story.results)} checks, {time.monotonic() - story.begin:.0f} s", file=sys.stderr)
    failures += [f"{r['reader']}, {r['place']}, {r['table']}, {r['check']} after {r['stage']}: {r['difference']}" for r in results if r["difference"]]
    markdown(results, readers, places)
    print(*failures, sep="\n", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
