"""Spark as the predecessor used it: the window over JDBC, cached and counted, appended to the Iceberg table.

    spark-submit bench-spark.py URL LAKE SELECT LOW HIGH

The predecessor read a window with one reader. Two, one half of the window each, keep both cores busy and take about a fifth less time.
Prints the seconds of the two steps.
"""

import sys
import time

from pyspark.sql import SparkSession

url, lake, select, low, high = sys.argv[1:]
spark = (
    SparkSession.builder.config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.catalog.k2", "org.apache.iceberg.spark.SparkCatalog")
    .config("spark.sql.catalog.k2.type", "jdbc")
    .config("spark.sql.catalog.k2.uri", f"jdbc:sqlite:{lake}/catalog.db")
    .config("spark.sql.catalog.k2.warehouse", f"file://{lake}/warehouse")
    .getOrCreate()
)

begin = time.monotonic()
rows = (
    spark.read.format("jdbc")
    .option("driver", "com.clickhouse.jdbc.ClickHouseDriver")
    .option("url", f"jdbc:clickhouse:{url}/bench")
    .option("user", "default")
    .option("password", "")
    .option("dbtable", f"({select}) AS t")
    .option("fetchsize", 100_000)
    # The bounds only cut: what lies outside them is read too.
    .option("partitionColumn", "exchange_timestamp")
    .option("lowerBound", low)
    .option("upperBound", high)
    .option("numPartitions", 2)
    .load()
    .cache()
)
rows.count()
cached = time.monotonic()
rows.writeTo("k2.cold.bronze_trades_binance").append()
print(f"read {cached - begin:.1f} s, append {time.monotonic() - cached:.1f} s")
