//! Documents for other programs, posted over HTTP: a webhook, a collector of metrics.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use tokio::net::TcpStream;

use crate::error::{Classify, Error, Kind, Result};

/// Posts a JSON document; any answer but a 2xx is an error. No error names the URL, which may be a secret.
pub async fn post_json(url: &str, document: String, timeout: Duration) -> anyhow::Result<()> {
    // Who goes where he is redirected to asks there without the document, and tells that host the URL.
    let client = reqwest::Client::builder().timeout(timeout).redirect(Policy::none()).build()?;
    let answer = client.post(url).header(CONTENT_TYPE, "application/json").body(document).send().await;
    let status = answer.map_err(reqwest::Error::without_url)?.status();
    anyhow::ensure!(status.is_success(), "the answer is {status}");
    Ok(())
}

/// Whether somebody listens there. Nothing is sent.
pub async fn reach(url: &str, timeout: Duration) -> Result<()> {
    let url = url::Url::parse(url).ok();
    let address = url.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    let (host, port) = address.ok_or_else(|| Error::new(Kind::Config, "is no http or https URL"))?;
    let connected = tokio::time::timeout(timeout, TcpStream::connect((host.trim_matches(['[', ']']), port))).await;
    let connected = connected.or_error(Kind::Unavailable, format!("connect to {host}:{port}"))?;
    connected.or_error(Kind::Unavailable, format!("connect to {host}:{port}")).map(|_| ())
}
