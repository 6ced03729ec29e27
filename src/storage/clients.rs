//! What a client of an object store is made of: properties that are configured or lent, the environment, and files of AWS' tools.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, CredentialProvider, RetryConfig, StaticCredentialProvider,
};

use super::buckets::{Bucket, Properties};
use super::errors::{Access, Cloud, NoCredentials};
use super::profile::Files;
use crate::config::{Secret, Storage};
use crate::error::{Classify, Context, Error, Kind, Result, causes};

/// Tries of a request after the first. A pass tries a table again on top of them.
const RETRIES: usize = 5;
const BACKOFF: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };

/// Variables that hold a secret of a store.
const SECRET_VARIABLES: [&str; 12] = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_TOKEN",
    "AZURE_FABRIC_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
];
/// Where the keys for S3 are.
enum Keys {
    /// The builder has them; those of them that were read from a file.
    Known(Vec<Secret>),
    /// The client fetches them, and others when they expire.
    Fetched,
}

/// Credentials that the client may have to fetch: that there are none is no error of the store.
#[derive(Debug)]
struct Fetched<C> {
    provider: Arc<dyn CredentialProvider<Credential = C>>,
    is_expected: bool,
}

#[async_trait]
impl<C: std::fmt::Debug + Send + Sync + 'static> CredentialProvider for Fetched<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        self.provider.get_credential().await.map_err(|cause| {
            let missing = NoCredentials { is_expected: self.is_expected, cause };
            object_store::Error::Generic { store: "credentials", source: Box::new(missing) }
        })
    }
}

impl<C> Fetched<C> {
    /// What `provider` gives; expected where the environment says whence.
    fn by(cloud: Cloud, provider: &Arc<dyn CredentialProvider<Credential = C>>) -> Arc<Self> {
        let is_expected = cloud.fetched_from().iter().any(|name| is_set(name));
        Arc::new(Self { provider: provider.clone(), is_expected })
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some()
}

/// What a client is made of.
pub(super) struct Settings<'a> {
    /// What is configured.
    pub(super) config: &'a Storage,
    /// What a catalog lends, which goes before it.
    pub(super) lent: &'a Properties,
}

impl Settings<'_> {
    /// A property of Iceberg: lent, or configured.
    fn get(&self, key: &str) -> Option<&str> {
        let lent = self.lent.get(key).map(Secret::expose);
        lent.or_else(|| self.config.properties.get(key).map(String::as_str))
    }

    fn is_true(&self, key: &str) -> Option<bool> {
        self.get(key).map(|text| text.eq_ignore_ascii_case("true"))
    }

    /// A client for scheme and bucket `root`.
    pub(super) fn bucket(&self, root: &str) -> Result<Bucket> {
        let scheme = root.split_once("://").map_or("", |(scheme, _)| scheme);
        let made = match scheme {
            "s3" => self.s3(root)?,
            // Who knows the credentials is decided when it is built.
            "gs" => {
                let builder = self.google(root)?;
                let made = builder.clone().build().and_then(|store| {
                    builder.with_credentials(Fetched::by(Cloud::Google, store.credentials())).build()
                });
                made.map(|store| Bucket::of(store, self.access(Cloud::Google, true)))
            }
            "abfs" | "abfss" | "az" => {
                let builder = self.azure(root)?;
                let made = builder
                    .clone()
                    .build()
                    .and_then(|store| builder.with_credentials(Fetched::by(Cloud::Azure, store.credentials())).build());
                made.map(|store| Bucket::of(store, self.access(Cloud::Azure, true)))
            }
            scheme => {
                return Err(Error::refused(format!("this version does not know `{scheme}://` locations"))
                    .hint("it knows file://, s3://, gs:// and abfss://"));
            }
        };
        made.map_err(|e| {
            // Errors of builders name what is missing or wrong; only that of Google's JSON quotes it, which is the key.
            let is_of_json = causes(&e).any(|cause| cause.is::<serde_json::Error>());
            let error = match is_of_json {
                true => Error::new(Kind::Config, "the service account's key is not the JSON that Google gives out"),
                false => Error::new(Kind::Config, e),
            };
            error.context(format!("set up access to {root}")).hint(
                "see catalog.properties and the variables of the environment: AWS_, GOOGLE_ or AZURE_ and what follows",
            )
        })
    }

    fn client(&self, endpoint: Option<&str>) -> Result<ClientOptions> {
        let mut options = ClientOptions::new()
            .with_allow_http(endpoint.is_some_and(|url| url.starts_with("http://")))
            .with_connect_timeout(self.config.connect_timeout)
            .with_timeout(self.config.timeout);
        let certificates = self.config.ca_file.as_deref().map(crate::tls::certificates).transpose();
        let certificates = certificates.context_with(|| "catalog.ca_file")?;
        for certificate in certificates.unwrap_or_default() {
            options = options
                .with_root_certificate(Certificate::from_der(&certificate).or_error(Kind::Config, "catalog.ca_file")?);
        }
        Ok(options)
    }

    /// A server that lets every connection wait is given up after some of them, not after [`RETRIES`].
    fn retry(&self) -> RetryConfig {
        let retry_timeout = self.config.timeout.min(2 * self.config.connect_timeout);
        RetryConfig { backoff: BACKOFF, max_retries: RETRIES, retry_timeout }
    }

    /// With all that is secret in what was lent and in the environment; `is_renewed` where credentials of our own are other ones the next time.
    fn access(&self, cloud: Cloud, is_renewed: bool) -> Access {
        let is_secret = |key: &str| ["secret", "token", "account-key"].iter().any(|part| key.contains(part));
        let lent = self.lent.iter().filter(|(key, _)| is_secret(key)).map(|(_, value)| value.clone());
        let environment = SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok()).map(Secret::new);
        Access {
            cloud,
            is_renewed: is_renewed || self.lent.keys().any(|key| is_secret(key)),
            secrets: lent.chain(environment).collect(),
        }
    }

    fn s3(&self, root: &str) -> Result<object_store::Result<Bucket>> {
        let (builder, keys) = self.s3_credentials(self.s3_place(root)?)?;
        let mut access = self.access(Cloud::S3, matches!(keys, Keys::Fetched));
        let store = match keys {
            Keys::Known(secrets) => {
                access.secrets.extend(secrets);
                builder.build()
            }
            // Else an instance's role would be asked, which is another one.
            Keys::Fetched
                if is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
                    && !is_set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") =>
            {
                return Err(Error::new(
                    Kind::Config,
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI is set without AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                )
                .hint("this version knows the two together, as on EKS, and AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, as on ECS"));
            }
            // Who knows the keys is decided when it is built.
            Keys::Fetched => builder
                .clone()
                .build()
                .and_then(|store| builder.with_credentials(Fetched::by(Cloud::S3, store.credentials())).build()),
        };
        Ok(store.map(|store| Bucket::of(store, access)))
    }

    fn s3_place(&self, root: &str) -> Result<AmazonS3Builder> {
        let mut builder = AmazonS3Builder::from_env().with_url(root).with_retry(self.retry());
        let endpoint = self.get("s3.endpoint").map(str::to_owned);
        let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok());
        let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
        builder = builder.with_client_options(self.client(endpoint.as_deref())?);
        let path_style = self.is_true("s3.path-style-access").unwrap_or(endpoint.is_some());
        builder = builder.with_virtual_hosted_style_request(!path_style);
        if let Some(endpoint) = endpoint {
            let bucket = root.trim_start_matches("s3://");
            builder = builder.with_endpoint(match (path_style, endpoint.split_once("://")) {
                // The client takes an endpoint with the bucket in its name as it is.
                (false, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
                _ => endpoint,
            });
        }
        if let Some(region) = self.get("s3.region").or_else(|| self.get("client.region")) {
            builder = builder.with_region(region);
        }
        if self.is_true("s3.checksum-enabled") == Some(true) {
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        builder = match (self.get("s3.sse.type"), self.get("s3.sse.key")) {
            (Some("s3"), _) => {
                let key = "aws_server_side_encryption".parse::<AmazonS3ConfigKey>();
                builder.with_config(key.or_error(Kind::Internal, "ask for encryption")?, "AES256")
            }
            (Some("kms"), Some(key)) => builder.with_sse_kms_encryption(key),
            (Some("dsse-kms"), Some(key)) => builder.with_dsse_kms_encryption(key),
            _ => builder,
        };
        // As AWS' own clients call it.
        if let Ok(endpoint) = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
            builder = builder.with_metadata_endpoint(endpoint.trim_end_matches('/'));
        }
        Ok(builder)
    }

    /// Lent by the catalog; else from the file or profile that the configuration names; else from the environment, a shared file, a web identity
    /// or the role of an instance.
    fn s3_credentials(&self, builder: AmazonS3Builder) -> Result<(AmazonS3Builder, Keys)> {
        let lent = |key: &str| self.lent.get(key).map(Secret::expose);
        if let (Some(id), Some(key)) = (lent("s3.access-key-id"), lent("s3.secret-access-key")) {
            return Ok((with_keys(builder, id, key, lent("s3.session-token")), Keys::Known(Vec::new())));
        }
        let variable = |name: &str| std::env::var(name).ok();
        let (file, profile) = (self.get("s3.credentials-file"), self.get("s3.profile-name"));
        let is_named = file.is_some() || profile.is_some();
        if !is_named && variable("AWS_ACCESS_KEY_ID").is_some() {
            return Ok((builder, Keys::Known(Vec::new())));
        }
        if !is_named && variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
            return Ok((builder, Keys::Fetched));
        }
        let named = profile.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        match Files::of_environment(file, variable).find(&name)? {
            Some(found) => {
                let token = found.token.as_ref().map(Secret::expose);
                let builder = with_keys(builder, &found.key_id, found.key.expose(), token);
                let given = self.get("s3.region").or_else(|| self.get("client.region")).is_some();
                let builder = match found.region.filter(|_| !given) {
                    Some(region) => builder.with_region(region),
                    None => builder,
                };
                Ok((builder, Keys::Known([found.key].into_iter().chain(found.token).collect())))
            }
            None if is_named || named.is_some() => {
                Err(Error::new(Kind::Config, format!("there is no profile `{name}` of AWS"))
                    .hint("correct \"s3.profile-name\", \"s3.credentials-file\" or AWS_PROFILE"))
            }
            None => Ok((builder, Keys::Fetched)),
        }
    }

    fn google(&self, root: &str) -> Result<GoogleCloudStorageBuilder> {
        let host = self.get("gcs.service.host");
        let mut builder = GoogleCloudStorageBuilder::from_env().with_url(root).with_retry(self.retry());
        builder = builder.with_client_options(self.client(host)?);
        if let Some(host) = host {
            builder = builder.with_base_url(host);
        }
        if self.is_true("gcs.no-auth") == Some(true) {
            // Else a token would be fetched for some requests all the same.
            let nobody = GcpCredential { bearer: String::new() };
            builder =
                builder.with_skip_signature(true).with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
        } else if let Some(token) = self.get("gcs.oauth2.token") {
            let credential = GcpCredential { bearer: token.to_owned() };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
        } else if let Some(file) = self.get("gcs.credentials-file") {
            builder = builder.with_service_account_path(file);
        }
        Ok(builder)
    }

    fn azure(&self, root: &str) -> Result<MicrosoftAzureBuilder> {
        let endpoint = self.get("adls.endpoint").map(str::to_owned);
        let mut builder = MicrosoftAzureBuilder::from_env().with_url(root).with_retry(self.retry());
        builder = builder.with_client_options(self.client(endpoint.as_deref())?);
        let named = self.get("adls.account-name").map(str::to_owned);
        // container@account.host
        let account = root.split_once('@').and_then(|(_, host)| host.split('.').next()).map(str::to_owned);
        if let Some(account) = named.or_else(|| account.clone()) {
            builder = builder.with_account(account);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let host = root.split_once('@').map(|(_, host)| host).unwrap_or_default();
        let sas = ["adls.sas-token", &format!("adls.sas-token.{host}")].map(|key| self.get(key));
        let of_account = account.and_then(|account| self.get(&format!("adls.sas-token.{account}")));
        if let Some(token) = sas.into_iter().flatten().next().or(of_account) {
            builder = builder.with_config(AzureConfigKey::SasKey, token);
        }
        Ok(builder)
    }
}

/// As they are: of keys without a token, one in the environment is none.
fn with_keys(builder: AmazonS3Builder, id: &str, key: &str, token: Option<&str>) -> AmazonS3Builder {
    let keys = AwsCredential { key_id: id.to_owned(), secret_key: key.to_owned(), token: token.map(str::to_owned) };
    builder.with_credentials(Arc::new(StaticCredentialProvider::new(keys)))
}
