"""Where tables of the readers' matrix lie: a catalog and a storage, as our configuration and each engine name them."""

import os
import subprocess
import urllib.parse
import uuid

import iceberg

PLACES = {"sqlite-file": "SQLite, files", "sqlite-s3": "SQLite, S3", "postgres-s3": "PostgreSQL, S3", "rest-s3": "REST, S3"}


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
