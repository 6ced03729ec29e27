//! Credentials for S3 from the files that AWS' tools share: `~/.aws/credentials` and `~/.aws/config`.
//!
//! object_store reads the environment, web identities and instance roles; these files it does not.

use std::path::{Path, PathBuf};

use ini::{Ini, ParseOption};

use crate::config::Secret;
use crate::error::{Classify, Error, Kind, Result};

/// What a profile says.
#[derive(Debug, Default)]
pub(super) struct Profile {
    pub key_id: String,
    pub key: Secret,
    pub token: Option<Secret>,
    pub region: Option<String>,
}

/// Where profiles are looked for.
#[derive(Debug)]
pub(super) struct Files {
    /// The file that the configuration names, which must be there.
    given: Option<PathBuf>,
    /// `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`.
    pub credentials: Option<PathBuf>,
    /// `AWS_CONFIG_FILE`, or `~/.aws/config`.
    pub config: Option<PathBuf>,
}

impl Files {
    /// As the environment has it; `given` is the file that the configuration names.
    pub(super) fn of_environment(given: Option<&str>, environment: impl Fn(&str) -> Option<String>) -> Self {
        let home = environment("HOME").map(|home| PathBuf::from(home).join(".aws"));
        let of = |variable, name| {
            let named = environment(variable).map(PathBuf::from);
            named.or_else(|| home.as_ref().map(|home| home.join(name)))
        };
        let credentials = given.map(PathBuf::from).or_else(|| of("AWS_SHARED_CREDENTIALS_FILE", "credentials"));
        Self { given: given.map(PathBuf::from), credentials, config: of("AWS_CONFIG_FILE", "config") }
    }

    /// The keys of a profile; `None` where no file has it.
    pub(super) fn find(&self, profile: &str) -> Result<Option<Profile>> {
        if let Some(file) = self.given.as_ref().filter(|file| !file.exists()) {
            return Err(Error::new(Kind::Config, format!("the file {} does not exist", file.display()))
                .hint("correct \"s3.credentials-file\" in catalog.properties"));
        }
        let credentials = self.credentials.as_deref().map(read).transpose()?.flatten();
        let config = self.config.as_deref().map(read).transpose()?.flatten();
        let in_config = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
        let sections = [
            credentials.as_ref().and_then(|file| file.section(Some(profile))),
            config.as_ref().and_then(|file| file.section(Some(in_config))),
        ];
        let get = |key: &str| sections.iter().flatten().find_map(|section| section.get(key));
        let secret = |key: &str| get(key).map(|text| Secret::new(text.to_owned()));
        match (get("aws_access_key_id"), secret("aws_secret_access_key")) {
            (Some(key_id), Some(key)) => Ok(Some(Profile {
                key_id: key_id.to_owned(),
                key,
                token: secret("aws_session_token"),
                region: get("region").map(str::to_owned),
            })),
            _ if sections.iter().all(Option::is_none) => Ok(None),
            _ => Err(Error::new(Kind::Config, format!("the profile `{profile}` of AWS has no access key")).hint(
                "profiles by SSO, roles and processes are not supported: give keys, a web identity or an instance's role",
            )),
        }
    }
}

fn read(file: &Path) -> Result<Option<Ini>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file).or_error(Kind::Config, format!("read {}", file.display()))?;
    // What does not parse is not quoted: it may hold a secret.
    // Values are as they stand there, as for AWS' own tools.
    let raw = ParseOption { enabled_quote: false, enabled_escape: false, ..ParseOption::default() };
    Ini::load_from_str_opt(&text, raw).map(Some).map_err(|error| {
        Error::new(Kind::Config, format!("line {} is neither [section] nor key = value", error.line))
            .context(format!("read {}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(credentials: &str, config: &str) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let aws = folder.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        std::fs::write(aws.join("credentials"), credentials).unwrap();
        std::fs::write(aws.join("config"), config).unwrap();
        let home = folder.path().display().to_string();
        let files = Files::of_environment(None, |name| (name == "HOME").then(|| home.clone()));
        (folder, files)
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let (_folder, files) = files(
            "[default]\naws_access_key_id = A\naws_secret_access_key=s3\\cr'e\"t/+=\n[lake]\naws_access_key_id=B\naws_secret_access_key=b\naws_session_token=t\n",
            "[default]\nregion = eu-west-1\n[profile lake]\nregion=us-west-2\n",
        );
        let default = files.find("default").unwrap().unwrap();
        assert_eq!(
            (default.key_id.as_str(), default.key.expose(), default.region.as_deref()),
            ("A", "s3\\cr'e\"t/+=", Some("eu-west-1"))
        );
        let lake = files.find("lake").unwrap().unwrap();
        assert_eq!((lake.token.unwrap().expose(), lake.region.as_deref()), ("t", Some("us-west-2")));
        assert!(files.find("other").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_not_quoted() {
        let (_folder, files) = files("[default]\ns3cret\n", "");
        let error = files.find("default").unwrap_err();
        assert!(error.kind() == Kind::Config && !error.to_string().contains("s3cret"), "{error}");
        let (_folder, files) = self::files("", "[profile sso]\nsso_session = x\n");
        assert!(files.find("sso").unwrap_err().hint_text().contains("SSO"));
    }
}
