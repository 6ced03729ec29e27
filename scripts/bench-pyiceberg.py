"""PyIceberg with clickhouse-connect: the rows of a SELECT, as one Arrow table, appended to the Iceberg table.

    bench-pyiceberg.py URL LAKE SELECT
"""

import sys
import urllib.parse

import clickhouse_connect
from pyiceberg.catalog.sql import SqlCatalog

url, lake, select = sys.argv[1:]
server = urllib.parse.urlparse(url)
client = clickhouse_connect.get_client(host=server.hostname, port=server.port, database="bench")
rows = client.query_arrow(select, use_strings=True)
table = SqlCatalog("k2", uri=f"sqlite:///{lake}/catalog.db").load_table("cold.bronze_trades_binance")
table.append(rows.cast(table.schema().as_arrow()))
