"""Files of PyIceberg in the stores of scripts/lake that stand for those of Azure and Google: `"py-io-impl": "clouds.Files"`."""

from pyarrow.fs import AzureFileSystem
from pyiceberg.io.pyarrow import PyArrowFileIO


class Files(PyArrowFileIO):
    @staticmethod
    def parse_location(location, properties={}):
        scheme, authority, path = PyArrowFileIO.parse_location(location, properties)
        if scheme == "gs":
            # Google's client speaks another API than moto, where the same objects are in S3.
            return "s3", authority, path
        # PyIceberg 0.12 takes container@account for the name of the container.
        container, _, account = authority.partition("@")
        return scheme, authority, path.replace(f"@{account}", "", 1) if account else path

    def _initialize_azure_fs(self):
        # PyIceberg's own needs the package `packaging`, which nothing here installs.
        prefix = "adls."
        return AzureFileSystem(**{name.removeprefix(prefix): value for name, value in self.properties.items() if name.startswith(prefix)})
