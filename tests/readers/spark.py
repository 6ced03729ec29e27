"""Spark with Iceberg, asked line by line: a JSON text of SQL on standard input, a JSON object with rows, or an error, on standard output.

    python spark.py '{"CATALOG": {"type": "rest", "uri": "..", ..}, ..}'

`files` of an answer: how many data files its scans planned to read.
"""

import datetime
import json
import sys

from pyspark.sql import Row, SparkSession

spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.driver.memory", "1g")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.shuffle.partitions", "2")
    # Metrics of a scan are found in plans that do not change.
    .config("spark.sql.adaptive.enabled", "false")
    .config("spark.sql.extensions", "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions")
)
for catalog, properties in json.loads(sys.argv[1]).items():
    spark = spark.config(f"spark.sql.catalog.{catalog}", "org.apache.iceberg.spark.SparkCatalog")
    # Between two questions others commit.
    for name, value in {"cache-enabled": "false", **properties}.items():
        spark = spark.config(f"spark.sql.catalog.{catalog}.{name}", value)
spark = spark.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")


def plain(value):
    if isinstance(value, (Row, tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def files(frame):
    leaves = frame._jdf.queryExecution().executedPlan().collectLeaves()
    metrics = [leaves.apply(at).metrics() for at in range(leaves.size())]
    return sum(each.apply("resultDataFiles").value() for each in metrics if each.contains("resultDataFiles"))


def answer(query):
    try:
        frame = spark.sql(query)
        rows = [plain(row) for row in frame.collect()]
        return {"rows": rows, "files": files(frame)}
    except Exception as error:
        return {"error": str(error).split("\n\tat ")[0]}


iceberg = spark._jvm.org.apache.iceberg.IcebergBuild.version()
print(json.dumps({"version": f"Spark {spark.version} with Iceberg {iceberg}"}), flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
