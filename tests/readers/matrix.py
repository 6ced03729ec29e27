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
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import warnings
from pathlib import Path

import iceberg
from engines import ClickHouse, DuckDB, PyIceberg, Spark, Trino
from places import PLACES, Place, Target
from tables import LATER, SOURCES, TABLES, config, moment, silver_trades, trades, wanted

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 1000
# Stages after which readers look.
PASSES, PYICEBERG, SPARK_DELETES, SPARK_REWRITES = "passes", "PyIceberg", "Spark's deletes", "Spark's rewrites"


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
        self.look(PASSES)

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
        self.look(PYICEBERG)

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
        self.look(SPARK_DELETES)
        procedures = {
            "rewrite_data_files": "options => map('rewrite-all', 'true')",
            "rewrite_position_delete_files": "options => map('rewrite-all', 'true')",
            "rewrite_manifests": "use_caching => false",
            "expire_snapshots": f"older_than => TIMESTAMP '{before_last}'",
        }
        for procedure, option in procedures.items():
            for target in self.targets.values():
                # Bronze has an order of its rows.
                strategy = "strategy => 'sort', " if (procedure, target) == ("rewrite_data_files", bronze) else ""
                table = f"table => '{target.namespace}.{target.name}'"
                spark.ask(f"CALL {self.place.identifier}.system.{procedure}({table}, {strategy}{option})")
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
        self.look(SPARK_REWRITES)

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
                        told = compare(reader, name, table, expected[reader.knows("null lists", stage)][name], stage)
                    except Exception as error:
                        difference = f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS]
                    self.results.append({
                        "place": self.place.name, "stage": stage, "reader": reader.version, "table": name, "check": check, "told": told,
                        "difference": difference,
                    })

    def sums(self, reader, name, table, expected, stage):
        same(reader.sums(self.targets[name], table), expected["sums"])

    def rows(self, reader, name, table, expected, stage):
        """All of them, those of each filter, for which less must be read, and those of each search."""
        rows, all = reader.rows(self.targets[name], table.columns)
        same(rows, expected["rows"])
        opened = {}
        for what, conditions in (table.filters | table.searches).items():
            if not reader.knows(what, stage):
                continue
            rows, some = reader.rows(self.targets[name], table.columns, conditions)
            same(rows, expected["found"][what], what)
            if what in table.filters and some >= all:
                raise AssertionError(f"{what}: {some} of {all} {reader.unit} were read")
            opened[what] = f"{some} of {all} {reader.unit}"
            if not expected["found"][what]:
                raise AssertionError(f"{what}: nothing is to be found")
        return opened

    def travel(self, reader, name, table, expected, stage):
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


def markdown(results, readers, places):
    """A line for each reader, a column for each place: how many checks it passed, and what it read of silver for one partition."""
    print(f"| reader | {' | '.join(PLACES[place.name] for place in places)} |")
    print(f"|---|{'---|' * len(places)}")
    for reader in readers:
        print(f"| {reader.version} | {' | '.join(cell(results, reader, place) for place in places)} |")
    for reader in readers:
        for what, (_, reason) in reader.lacks.items():
            print(f"\n{reader.version}, {what}: {reason}")


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
    # PyIceberg knows no Bloom filters.
    warnings.filterwarnings("ignore", "Parquet writer option")
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
