"""Looks at an Iceberg table with readers and writers that are not ours, and prints what it saw as JSON.

    python iceberg.py COMMAND '{"catalog": "/path/catalog.db", "namespace": "cold", "table": "trades", ...}'
    python iceberg.py serve NAME

Each command is the function of its name below; the JSON object holds its arguments. `catalog` is the file of an SQL catalog, or the properties of
any other. `compare` is the oracle of the tests: it reads the source over HTTP, the target with one of three readers, and compares the rows as
multisets of canonical text.
"""

import base64
import datetime
import decimal
import glob
import hashlib
import json
import os
import re
import select
import signal
import socket
import sys
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHOWN_DIFFERENCES = 5
# PyIceberg 0.12 has one evaluator of manifests for all its threads, and it keeps state: with several, files may be missed under a filter.
os.environ["PYICEBERG_MAX_WORKERS"] = "1"


# --- the oracle


def compare(source, readers, where="1", **table):
    """For each reader, whether the target holds exactly the rows of the source, each as often as there."""
    want = canonical_rows(read_clickhouse(source["url"], f"{quoted(source['database'])}.{quoted(source['table'])}", where))
    return [difference(reader, canonical_rows(READERS[reader](source["url"], **table)), want) for reader in readers]


def compare_all(url, database, pairs, readers, catalog, namespace, **_):
    """`compare` for many pairs of source and table, with the type of the second column."""
    results = []
    for source, table in pairs:
        target = {"catalog": catalog, "namespace": namespace, "table": table}
        compared = compare({"url": url, "database": database, "table": source}, readers, **target)
        results.append({"type": str(load(**target).schema().fields[1].field_type), "readers": compared})
    return results


def difference(reader, have, want):
    if have.equals(want):
        return {"reader": reader, "equal": True, "source": len(want), "target": len(have)}
    have_counts, want_counts = Counter(have.to_pylist()), Counter(want.to_pylist())
    return {
        "reader": reader,
        "equal": False,
        "source": len(want),
        "target": len(have),
        "missing_rows": sum((want_counts - have_counts).values()),
        "extra_rows": sum((have_counts - want_counts).values()),
        "missing": shown(want_counts - have_counts),
        "extra": shown(have_counts - want_counts),
    }


def shown(counts):
    return [[count, row] for row, count in counts.most_common(SHOWN_DIFFERENCES)]


def canonical_rows(table):
    """Each row as one text: column names in front, so that swapped columns differ; sorted."""
    columns = [canonical(name, table.column(name)) for name in sorted(table.column_names)]
    rows = pc.binary_join_element_wise(*columns, pa.scalar("\x1f", pa.large_string()))
    return rows.combine_chunks().sort() if isinstance(rows, pa.ChunkedArray) else rows.sort()


def canonical(name, column):
    text = pc.cast(plain(column), pa.large_string())
    value = pc.binary_join_element_wise(pa.scalar(name, pa.large_string()), text, pa.scalar("=", pa.large_string()))
    return pc.fill_null(value, pa.scalar(name + " is null", pa.large_string()))


def plain(column):
    """Values in a type whose text is the same whoever read them: ticks for times, bits for floats."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(column.storage)
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary_decode())
    if pa.types.is_timestamp(kind):
        return pc.cast(column, pa.timestamp("us", kind.tz)).view(pa.int64())
    if pa.types.is_date32(kind):
        return column.view(pa.int32())
    if pa.types.is_float32(kind):
        return column.view(pa.int32())
    if pa.types.is_float64(kind):
        return column.view(pa.int64())
    if pa.types.is_decimal(kind):
        return pc.cast(column, pa.decimal128(38, kind.scale))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return texts(column, lambda value: str(uuid.UUID(bytes=value)))
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return texts(column, lambda value: value.hex().upper())
    if pa.types.is_nested(kind):
        return pa.array([json.dumps(nested_value(v, kind)) for v in column.to_pylist()], pa.string())
    return column


def texts(column, text):
    return pa.array([None if value is None else text(value) for value in column.to_pylist()], pa.string())


def nested_value(value, kind):
    """A value of any depth as JSON whose text is the same whoever read it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(kind, pa.BaseExtensionType):
        return nested_value(value, kind.storage_type)
    if pa.types.is_map(kind):
        # In ClickHouse's JSON a map with the keys 1, 2, .. looks like a struct without names.
        return struct([[nested_key(nested_value(k, kind.key_type), kind.key_type), nested_value(v, kind.item_type)] for k, v in value])
    if pa.types.is_struct(kind):
        return struct([[f.name, nested_value(value[f.name], f.type)] for f in kind])
    if pa.types.is_nested(kind):
        return [nested_value(v, kind.value_type) for v in value]
    if pa.types.is_timestamp(kind):
        return simple_time(value.strftime("%Y-%m-%d %H:%M:%S.%f"))
    if pa.types.is_fixed_size_binary(kind) and isinstance(value, bytes):
        return str(uuid.UUID(bytes=value))
    if pa.types.is_float32(kind):
        value = pa.scalar(value, pa.float32()).cast(pa.string()).as_py()
    return str(value) if isinstance(value, (str, uuid.UUID, datetime.date)) and not pa.types.is_floating(kind) else number(value)


def nested_json(text):
    """The same of what ClickHouse's toJSONString printed."""

    def value(parsed):
        if isinstance(parsed, list):
            return [value(each) for each in parsed]
        if isinstance(parsed, tuple):
            return struct([[k, value(v)] for k, v in parsed])
        if isinstance(parsed, decimal.Decimal):
            return number(parsed)
        return simple_time(parsed) if isinstance(parsed, str) else parsed

    return json.dumps(value(json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal, object_pairs_hook=tuple)))


def struct(pairs):
    """Fields without names are numbered in Iceberg."""
    numbered = [name for name, _ in pairs] == [str(i + 1) for i in range(len(pairs))]
    return [value for _, value in pairs] if numbered and pairs else pairs


def nested_key(key, kind):
    """JSON has texts as keys only."""
    return key[1:] if pa.types.is_integer(kind) else key


def number(value):
    return f"#{decimal.Decimal(str(value)).normalize():f}"


def simple_time(text):
    """A time without zeros at its end; other texts stay."""
    time = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d*)?", text)
    return time[1] + (time[2] or "").rstrip("0").rstrip(".") if time else text


# --- readers


def read_pyiceberg(url, catalog, namespace, table):
    return load(catalog, namespace, table).scan().to_arrow()


def read_duckdb(url, catalog, namespace, table):
    return duckdb_scan(catalog, namespace, table, "*").to_arrow_table()


def duckdb_scan(catalog, namespace, table, what):
    return duckdb_scan_of(catalog, load(catalog, namespace, table).metadata_location, what)


def duckdb_scan_of(catalog, metadata, what):
    """Of a metadata file, or of a table's folder, whose hint names one."""
    import duckdb

    connection = duckdb.connect()
    # iceberg loads avro by itself, but would look for it on the network.
    for extension in ("avro", "iceberg") if is_local(metadata) else ("httpfs", "avro", "iceberg"):
        connection.execute(f"LOAD '{duckdb_extension(extension)}'")
    if not is_local(metadata):
        keys = {"KEY_ID": "s3.access-key-id", "SECRET": "s3.secret-access-key", "REGION": "s3.region"}
        settings = [f"{key} {text_literal(catalog[name])}" for key, name in keys.items()]
        host = urllib.parse.urlparse(catalog["s3.endpoint"]).netloc
        connection.execute(f"CREATE SECRET (TYPE s3, {', '.join(settings)}, ENDPOINT {text_literal(host)}, URL_STYLE 'path', USE_SSL false)")
        return connection.execute(f"SELECT {what} FROM iceberg_scan(?)", [metadata])
    return connection.execute(f"SELECT {what} FROM iceberg_scan(?)", [local_path(metadata)])


def duckdb_extension(name):
    for folder in sys.path:
        found = glob.glob(os.path.join(folder, f"duckdb_extension_{name}", "extensions", "*", f"{name}.duckdb_extension"))
        if found:
            return found[0]
    raise LookupError(f"no DuckDB extension {name} in {sys.path}")


def read_clickhouse_iceberg(url, catalog, namespace, table):
    loaded = load(catalog, namespace, table)
    # Left to itself, it takes the newest metadata file of the folder, also one that no commit made current.
    metadata = os.path.relpath(local_path(loaded.metadata_location), local_path(loaded.location()))
    settings = f"SETTINGS iceberg_metadata_file_path = {text_literal(metadata)}"
    if is_local(loaded.location()):
        return read_clickhouse(url, f"icebergLocal({text_literal(local_path(loaded.location()))}, {settings})", "1")
    place = f"{catalog['s3.endpoint']}/{loaded.location().removeprefix('s3://')}"
    keys = [text_literal(each) for each in (place, catalog["s3.access-key-id"], catalog["s3.secret-access-key"])]
    return read_clickhouse(url, f"icebergS3({', '.join(keys)}, {settings})", "1")


READERS = {"pyiceberg": read_pyiceberg, "duckdb": read_duckdb, "clickhouse": read_clickhouse_iceberg}


def read_clickhouse(url, source, where):
    described = json.loads(post(url, f"DESCRIBE TABLE {source} FORMAT JSON"))["data"]
    columns = [(column["name"], column["type"]) for column in described]
    inner = ", ".join(f"{quoted(name)} AS c{number}" for number, (name, _) in enumerate(columns))
    outer = ", ".join(canonical_sql(f"c{number}", kind) for number, (_, kind) in enumerate(columns))
    query = f"SELECT {outer} FROM (SELECT {inner} FROM {source} WHERE {where}) FORMAT ArrowStream"
    table = pa.ipc.open_stream(post(url, query)).read_all()
    for number, (_, kind) in enumerate(columns):
        if kind.startswith(NESTED):
            table = table.set_column(number, f"c{number}", texts(table.column(number), nested_json))
    return table.rename_columns([name for name, _ in columns])


TEXTS = ("Enum", "UUID", "IPv", "JSON", "Variant", "Dynamic", "Int128", "Int256", "UInt128", "UInt256")
NESTED = ("Array(", "Map(", "Tuple(", "Nested(")


def canonical_sql(column, kind):
    """What Arrow cannot say, or says differently from reader to reader, becomes a number or text on the server."""
    if kind.startswith(NESTED):
        return f"toJSONString({column})"
    base = re.sub(r"^(LowCardinality|Nullable)\((.*)\)$", r"\2", kind)
    base = re.sub(r"^Nullable\((.*)\)$", r"\1", base)
    if base.startswith("DateTime"):
        return f"toUnixTimestamp64Micro(toDateTime64({column}, 6, 'UTC'))"
    if base in ("Date", "Date32"):
        return f"toInt32({column})"
    if base.startswith("FixedString"):
        return f"hex({column})"
    if base.startswith(TEXTS) or kind.startswith("LowCardinality"):
        return f"CAST({column}, 'Nullable(String)')"
    return column


def post(url, query):
    # A server in a zone of its own must not change what the oracle sees.
    settings = {
        "wait_end_of_query": 1,
        "session_timezone": "UTC",
        "output_format_arrow_string_as_string": 1,
        "output_format_json_quote_64bit_integers": 0,
        "output_format_json_named_tuples_as_objects": 1,
        "output_format_arrow_compression_method": "none",
    }
    try:
        with urllib.request.urlopen(f"{url}/?{urllib.parse.urlencode(settings)}", query.encode()) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.read().decode(errors='replace')}\nquery: {query}")


def quoted(name):
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def text_literal(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# --- looking


def count(catalog, namespace, table):
    return len(load(catalog, namespace, table).scan().to_arrow())


def count_duckdb(catalog, namespace, table):
    return duckdb_scan(catalog, namespace, table, "count(*)").fetchone()[0]


def count_by_folder(catalog, namespace, table):
    """Rows that DuckDB and PyIceberg find by the table's folder, without its catalog."""
    from pyiceberg.table import StaticTable

    folder = load(catalog, namespace, table).location()
    properties = {} if is_local(folder) else catalog
    static = StaticTable.from_metadata(folder, properties=properties)
    return [duckdb_scan_of(catalog, folder, "count(*)").fetchone()[0], len(static.scan().to_arrow())]


def count_where(catalog, namespace, table, filters):
    """For each filter the number of rows that a scan finds."""
    loaded = load(catalog, namespace, table)
    return [len(loaded.scan(row_filter=each).to_arrow()) for each in filters]


def plan_files(catalog, namespace, table, filters):
    """For each filter the number of files that a scan would open."""
    loaded = load(catalog, namespace, table)
    return [len(list(loaded.scan(row_filter=each).plan_files())) for each in filters]


def data_files(catalog, namespace, table):
    """Paths of the files of the current snapshot, with partition and record count."""
    tasks = load(catalog, namespace, table).scan().plan_files()
    files = [
        {"path": local_path(t.file.file_path), "rows": t.file.record_count, "partition": str(list(t.file.partition))}
        for t in tasks
    ]
    return sorted(files, key=lambda file: file["path"])


def parquet(catalog, namespace, table):
    """For each data file, what pyarrow reads of its row groups: rows, and codec and length of the Bloom filter of each column that has one."""
    files = []
    for file in data_files(catalog, namespace, table):
        metadata = pq.read_metadata(file["path"])
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [[group.column(n) for n in range(group.num_columns)] for group in groups]
        files.append({
            "path": file["path"],
            "size": os.path.getsize(file["path"]),
            "rows": [group.num_rows for group in groups],
            "codecs": sorted({column.compression for group in columns for column in group}),
            "filters": [{c.path_in_schema: c.bloom_filter_length for c in group if c.bloom_filter_offset is not None} for group in columns],
        })
    return files


def bloom_probe(catalog, namespace, table, column, values):
    """For each value, in how many row groups the Bloom filter leaves it possible, in the eyes of DuckDB."""
    import duckdb

    paths = [file["path"] for file in data_files(catalog, namespace, table)]
    probe = "SELECT count(*) FILTER (NOT bloom_filter_excludes) FROM parquet_bloom_probe(?, ?, ?)"
    return [sum(duckdb.execute(probe, [path, column, value]).fetchone()[0] for path in paths) for value in values]


def bounds(catalog, namespace, table, column):
    """Lower and upper bound of a column in the manifests, per file, as text or, of what is none, in hex."""
    loaded = load(catalog, namespace, table)
    field = loaded.schema().find_field(column)
    text = lambda bound: bound.decode() if str(field.field_type) == "string" else bound.hex()
    files = [task.file for task in loaded.scan().plan_files()]
    side = lambda bounds: text(bounds[field.field_id]) if bounds and field.field_id in bounds else None
    return [[side(f.lower_bounds), side(f.upper_bounds)] for f in files]


def snapshots(catalog, namespace, table):
    """Oldest first."""
    return [
        {"id": s.snapshot_id, "parent": s.parent_snapshot_id, "summary": dict(s.summary.additional_properties)}
        for s in sorted(load(catalog, namespace, table).metadata.snapshots, key=lambda s: s.sequence_number)
    ]


def referenced_files(catalog, namespace, table):
    """Every file that the table needs: metadata files, and lists, manifests and live files of all snapshots."""
    loaded = load(catalog, namespace, table)
    files = {loaded.metadata_location} | {entry.metadata_file for entry in loaded.metadata.metadata_log}
    for snapshot in loaded.metadata.snapshots:
        files.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(loaded.io):
            files.add(manifest.manifest_path)
            files |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(loaded.io)}
    return sorted(map(local_path, files))


def manifests(catalog, namespace, table):
    """Live files in each manifest of the current snapshot."""
    loaded = load(catalog, namespace, table)
    manifests = loaded.current_snapshot().manifests(loaded.io)
    return [(m.added_files_count or 0) + (m.existing_files_count or 0) for m in manifests]


def count_at(catalog, namespace, table, reference):
    """Rows of a branch or tag."""
    loaded = load(catalog, namespace, table)
    return len(loaded.scan().use_ref(reference).to_arrow())


def properties(catalog, namespace, table):
    return load(catalog, namespace, table).properties


def schema(catalog, namespace, table):
    fields = load(catalog, namespace, table).schema().fields
    return [{"id": f.field_id, "name": f.name, "type": str(f.field_type), "required": f.required} for f in fields]


def identifier_fields(catalog, namespace, table):
    """Names of the columns that identify a row."""
    return sorted(load(catalog, namespace, table).schema().identifier_field_names())


def sort_order(catalog, namespace, table):
    """The table's order, by names."""
    loaded = load(catalog, namespace, table)
    order = loaded.sort_order()
    return [f"{loaded.schema().find_column_name(f.source_id)} {f.direction.name} {f.null_order.name.replace('_', ' ')}" for f in order.fields]


def sorted_files(catalog, namespace, table):
    """Whether the rows of each file are in the table's order, and what its manifest entry says."""
    loaded = load(catalog, namespace, table)
    keys = [
        (loaded.schema().find_column_name(f.source_id), f.direction.name == "DESC", "FIRST" in f.null_order.name)
        for f in loaded.sort_order().fields
    ]
    files = []
    for task in loaded.scan().plan_files():
        rows = pq.read_table(local_path(task.file.file_path)).to_pylist()
        ordered = list(rows)
        # Sorts are stable: the last key first.
        for name, descending, nulls_first in reversed(keys):
            known = sorted((r for r in ordered if r[name] is not None), key=lambda r: r[name], reverse=descending)
            nulls = [r for r in ordered if r[name] is None]
            ordered = nulls + known if nulls_first else known + nulls
        names = [name for name, _, _ in keys]
        same = [[r[n] for n in names] for r in rows] == [[r[n] for n in names] for r in ordered]
        files.append({"is_sorted": same and len(rows) > 1, "sort_order_id": task.file.sort_order_id, "rows": len(rows)})
    return files


def time_travel(catalog, namespace, table):
    """For each snapshot, oldest first, the fields of its own schema and the rows of a scan as it was then."""
    loaded = load(catalog, namespace, table)
    scans = [loaded.scan(snapshot_id=s.snapshot_id) for s in sorted(loaded.metadata.snapshots, key=lambda s: s.sequence_number)]
    return [{"fields": [f.name for f in scan.projection().fields], "rows": len(scan.to_arrow())} for scan in scans]


def alter(catalog, namespace, table, rename=None, require=None):
    """Renames columns, or makes one required."""
    with load(catalog, namespace, table).update_schema(allow_incompatible_changes=True) as update:
        for old, new in (rename or {}).items():
            update.rename_column(old, new)
        if require:
            update.update_column(require, required=True)


def add_schema(catalog, namespace, table):
    """With one more column, and not the current one."""
    from pyiceberg.schema import Schema
    from pyiceberg.table.update import AddSchemaUpdate
    from pyiceberg.types import NestedField, StringType

    loaded = load(catalog, namespace, table)
    theirs = NestedField(loaded.metadata.last_column_id + 1, "theirs", StringType(), required=False)
    schema = Schema(*loaded.schema().fields, theirs, schema_id=max(loaded.schemas()) + 1)
    loaded.catalog.commit_table(loaded, (), (AddSchemaUpdate(schema=schema),))


def metadata_location(catalog, namespace, table):
    return local_path(load(catalog, namespace, table).metadata_location)


def uploads(catalog, namespace, table):
    """Keys of the objects below the table that were begun and neither finished nor given up."""
    place = urllib.parse.urlparse(load(catalog, namespace, table).location())
    begun = s3_client(catalog).list_multipart_uploads(Bucket=place.netloc).get("Uploads", [])
    return sorted(upload["Key"] for upload in begun if upload["Key"].startswith(place.path.lstrip("/") + "/"))


def stored(catalog, namespace, table, location):
    """Of each object below a location: its encryption, the id of its key, and its SHA-256 as S3 writes it."""
    place = urllib.parse.urlparse(location)
    s3 = s3_client(catalog)
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=place.netloc, Prefix=place.path.lstrip("/") + "/"):
        for entry in page["Contents"]:
            told = s3.get_object(Bucket=place.netloc, Key=entry["Key"])
            digest = base64.b64encode(hashlib.sha256(told["Body"].read()).digest()).decode()
            found[entry["Key"]] = told.get("ServerSideEncryption"), told.get("SSEKMSKeyId"), digest
    return found


def s3_client(catalog):
    import boto3
    import botocore.config

    path_style = botocore.config.Config(s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": catalog["s3.access-key-id"], "aws_secret_access_key": catalog["s3.secret-access-key"]}
    return boto3.client("s3", endpoint_url=catalog["s3.endpoint"], region_name=catalog["s3.region"], config=path_style, **keys)


# --- changing, as other users of the catalog do


def append(catalog, namespace, table, rows, micros):
    """Adds `rows` rows whose times all lie at `micros` since 1970."""
    loaded = load(catalog, namespace, table)
    arrow = loaded.schema().as_arrow()
    columns = [pa.array([foreign_value(f.type, i, micros) for i in range(rows)], f.type) for f in arrow]
    appended = pa.Table.from_arrays(columns, schema=arrow)
    loaded.append(appended)
    return loaded.metadata.current_snapshot_id


def foreign_value(kind, number, micros):
    if pa.types.is_timestamp(kind):
        return micros
    if pa.types.is_decimal(kind):
        return decimal.Decimal(number)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"foreign {number}"
    return number


def delete(catalog, namespace, table, filter):
    load(catalog, namespace, table).delete(filter)


def change(catalog, namespace, table, filter, column, value):
    """Writes the rows of a filter anew, with another value in a column."""
    loaded = load(catalog, namespace, table)
    rows = loaded.scan(row_filter=filter).to_arrow()
    at = rows.schema.get_field_index(column)
    kind = rows.schema.field(at).type
    values = pa.array([decimal.Decimal(value) if pa.types.is_decimal(kind) else value] * len(rows), kind)
    loaded.overwrite(rows.set_column(at, rows.schema.field(at), values), overwrite_filter=filter)
    return len(rows)


def double(catalog, namespace, table, filter):
    """Adds the rows of a filter once more."""
    loaded = load(catalog, namespace, table)
    rows = loaded.scan(row_filter=filter).to_arrow()
    loaded.append(rows)
    return len(rows)


# --- committing, as engines that PyIceberg is not


def delete_positions(catalog, namespace, table, every, filter=None):
    """Deletes each `every`th row of every data file that a filter leaves by a position delete file (merge on read)."""
    from pyiceberg.manifest import DataFileContent

    loaded = load(catalog, namespace, table)
    fields = pa.schema([with_id("file_path", pa.string(), 2147483546), with_id("pos", pa.int64(), 2147483545)])
    deletes = []
    scan = loaded.scan(row_filter=filter) if filter else loaded.scan()
    for number, task in enumerate(scan.plan_files()):
        positions = list(range(0, task.file.record_count, every))
        rows = pa.Table.from_arrays([[task.file.file_path] * len(positions), positions], schema=fields)
        deletes.append((f"positions-{number}.parquet", rows, task.file.partition, {}))
    commit_files(loaded, DataFileContent.POSITION_DELETES, deletes)


def delete_equal(catalog, namespace, table, column, value):
    """Deletes the rows of the first file's partition that are equal in a column, by an equality delete file."""
    from pyiceberg.manifest import DataFileContent

    loaded = load(catalog, namespace, table)
    first = next(iter(loaded.scan().plan_files())).file
    field = loaded.schema().find_field(column)
    fields = pa.schema([with_id(column, loaded.schema().as_arrow().field(column).type, field.field_id)])
    rows = pa.Table.from_arrays([[value]], schema=fields)
    commit_files(
        loaded,
        DataFileContent.EQUALITY_DELETES,
        [("equal.parquet", rows, first.partition, {"equality_ids": [field.field_id]})],
    )


def append_without(catalog, namespace, table, column, partition, name="imported.parquet", ids=True):
    """Adds one row in a file without a column, as imported tables leave their partition columns; by its name it may claim another format, and it may
    have no field ids."""
    from pyiceberg.manifest import DataFileContent
    from pyiceberg.typedef import Record

    loaded = load(catalog, namespace, table)
    fields = pa.schema([field for field in loaded.schema().as_arrow() if field.name != column])
    if not ids:
        fields = pa.schema([field.remove_metadata() for field in fields])
    rows = pa.Table.from_pylist([{}], schema=fields)
    commit_files(loaded, DataFileContent.DATA, [(name, rows, Record(*partition), {})])


def with_id(name, kind, number):
    return pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": str(number)})


def commit_files(loaded, content, files):
    """Writes files below the table's location and commits them in one snapshot: name, rows, partition, further fields of the manifest entry."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2

    class DeleteManifestWriter(ManifestWriterV2):
        def content(self):
            return ManifestContent.DELETES

        @property
        def _meta(self):
            return {**super()._meta, "content": "deletes"}

    with loaded.transaction() as transaction:
        with transaction.update_snapshot().fast_append() as append:
            if content != DataFileContent.DATA:
                append.new_manifest_writer = lambda spec: DeleteManifestWriter(
                    spec, loaded.schema(), append.new_manifest_output(), append.snapshot_id, "gzip"
                )
            for name, rows, partition, further in files:
                path = f"{loaded.location()}/data/{uuid.uuid4()}-{name}"
                pq.write_table(rows, local_path(path))
                file = DataFile.from_args(
                    content=content,
                    file_path=path,
                    file_format=FileFormat[name.rsplit(".", 1)[1].upper()],
                    partition=partition,
                    record_count=len(rows),
                    file_size_in_bytes=os.path.getsize(local_path(path)),
                    **further,
                )
                file.spec_id = loaded.spec().spec_id
                append.append_data_file(file)


# --- writing as Spark's Hadoop catalog does


def hadoop_append(catalog, namespace, table, folder, uri, source, where, types={}, properties={}):
    """Appends rows of a source to a table without a catalog, which is made where it is missing; its metadata file.

    PyIceberg writes it through a catalog of its own; then the metadata gets the name that Hadoop's has.
    """
    theirs = os.path.join(folder, "theirs.db")
    first = not os.path.exists(theirs)
    own = open_catalog(theirs)
    if first:
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.schema import Schema
        from pyiceberg.transforms import DayTransform
        from pyiceberg.types import NestedField

        kinds = {**HADOOP_TYPES, **types}
        fields = [NestedField(n, name, kind, required=False) for n, (name, kind) in enumerate(kinds.items(), 1)]
        spec = PartitionSpec(PartitionField(1, 1000, DayTransform(), "exchange_timestamp_day"))
        own.create_namespace(namespace)
        own.create_table((namespace, table), Schema(*fields), f"{uri}{folder}/{namespace}/{table}", spec, properties=properties)
    loaded = own.load_table((namespace, table))
    casts = [f"CAST({quoted(f.name)}, {text_literal(CLICKHOUSE_TYPES[str(f.field_type).split('(')[0]])}) AS {quoted(f.name)}" for f in loaded.schema().fields]
    inner = f"SELECT * FROM {quoted(source['database'])}.{quoted(source['table'])} WHERE {where}"
    rows = pa.ipc.open_stream(post(source["url"], f"SELECT {', '.join(casts)} FROM ({inner}) FORMAT ArrowStream")).read_all()
    loaded.append(rows.cast(loaded.schema().as_arrow()))
    return name_as_hadoop(theirs)


HADOOP_TYPES = {
    "exchange_timestamp": "timestamptz", "sequence_number": "long", "symbol": "string", "price": "decimal(18, 8)", "quantity": "decimal(18, 8)",
    "quote_volume": "decimal(18, 8)", "event_time": "timestamptz", "kafka_offset": "long", "kafka_partition": "int", "ingestion_timestamp": "timestamptz",
}
CLICKHOUSE_TYPES = {
    "timestamptz": "DateTime64(6, 'UTC')", "timestamp": "DateTime64(6, 'UTC')", "long": "Int64", "int": "Int32", "string": "String", "decimal": "Decimal(38, 8)"
}


def name_as_hadoop(catalog):
    """The newest metadata becomes the next vN.metadata.json, and version-hint.text names it."""
    import sqlite3

    with sqlite3.connect(catalog) as connection:
        (location,) = connection.execute("SELECT metadata_location FROM iceberg_tables").fetchone()
        folder = os.path.dirname(local_path(location))
        hint = os.path.join(folder, "version-hint.text")
        version = int(open(hint).read()) + 1 if os.path.exists(hint) else 1
        metadata = os.path.join(os.path.dirname(location), f"v{version}.metadata.json")
        os.rename(local_path(location), local_path(metadata))
        connection.execute("UPDATE iceberg_tables SET metadata_location = ?", [metadata])
    for left in glob.glob(os.path.join(folder, "00000-*.metadata.json")):
        os.remove(left)
    with open(hint, "w") as file:
        file.write(str(version))
    return local_path(metadata)


# --- changing history and the catalog


def rollback(catalog, namespace, table):
    """To the parent of the current snapshot."""
    loaded = load(catalog, namespace, table)
    parent = loaded.current_snapshot().parent_snapshot_id
    loaded.manage_snapshots().rollback_to_snapshot(parent).commit()
    return parent


def expire(catalog, namespace, table):
    """Every snapshot but the current one; returns the ids that are left."""
    loaded = load(catalog, namespace, table)
    current = loaded.metadata.current_snapshot_id
    others = [s.snapshot_id for s in loaded.metadata.snapshots if s.snapshot_id != current]
    loaded.maintenance.expire_snapshots().by_ids(others).commit()
    return [s.snapshot_id for s in load(catalog, namespace, table).metadata.snapshots]


def tag(catalog, namespace, table, name):
    """Names the current snapshot."""
    loaded = load(catalog, namespace, table)
    loaded.manage_snapshots().create_tag(loaded.metadata.current_snapshot_id, name).commit()


def branch(catalog, namespace, table, name):
    """Begins a branch at the current snapshot."""
    loaded = load(catalog, namespace, table)
    loaded.manage_snapshots().create_branch(loaded.metadata.current_snapshot_id, name).commit()


def drop(catalog, namespace, table):
    open_catalog(catalog).drop_table((*namespace.split("."), table))


def set_properties(catalog, namespace, table, properties):
    with load(catalog, namespace, table).transaction() as transaction:
        transaction.set_properties(properties)


def create_other_table(catalog, namespace, table):
    """A table of somebody else beside ours."""
    fields = pa.schema([("id", pa.int64()), ("text", pa.string())])
    location = os.path.join(os.path.dirname(catalog), "theirs", table)
    created = open_catalog(catalog).create_table((*namespace.split("."), table), fields, location=location)
    created.append(pa.Table.from_pylist([{"id": 1, "text": "theirs"}], schema=fields))


def create_catalog(catalog, namespace, **_):
    """With the namespace, but without the table."""
    open_catalog(catalog).create_namespace(namespace)


def open_catalog(catalog):
    if isinstance(catalog, dict):
        from pyiceberg.catalog import load_catalog

        return load_catalog(**catalog)
    from pyiceberg.catalog.sql import SqlCatalog

    return SqlCatalog("k2", uri=f"sqlite:///{catalog}")


def load(catalog, namespace, table):
    return open_catalog(catalog).load_table((*namespace.split("."), table))


def local_path(location):
    """`file:///p`, `file:/p` and `/p` are one path; the S3 of scripts/lake keeps each object as a file."""
    if location.startswith("s3://"):
        return f"{os.environ['K2_TEST_LAKE']}/s3/{location.removeprefix('s3://')}"
    return location.removeprefix("file://" if location.startswith("file://") else "file:")


def is_local(location):
    return "://" not in location or location.startswith("file:")


COMMANDS = [
    compare, compare_all, count, count_duckdb, count_by_folder, count_where, plan_files, data_files, uploads, stored, snapshots, referenced_files, manifests, count_at, properties,
    schema, time_travel, alter, add_schema, identifier_fields, sort_order, sorted_files, metadata_location, append, delete, change, double, delete_positions, delete_equal, append_without, drop,
    rollback, expire, tag, branch, set_properties, create_other_table, create_catalog, hadoop_append, parquet, bloom_probe, bounds,
]


def run(command, arguments):
    return {function.__name__: function for function in COMMANDS}[command](**arguments)


def serve(name):
    """Runs commands that come to the abstract socket of this name, each in a fork, until stdin ends: what takes long is to import all this."""
    import duckdb  # noqa: F401
    import pyiceberg.catalog.rest  # noqa: F401
    import pyiceberg.catalog.sql  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name)
    listener.listen(128)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answer(connection)
            os._exit(0)
        connection.close()


def answer(connection):
    with connection.makefile("rw") as stream:
        try:
            said = {"result": run(*json.load(stream))}
        except Exception:
            said = {"error": traceback.format_exc()}
        json.dump(said, stream)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
