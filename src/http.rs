//! Documents for other programs, posted over HTTP: a webhook, a collector of metrics.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;

/// Posts a JSON document; any answer but a 2xx is an error. No error names the URL, which may be a secret.
pub async fn post_json(url: &str, document: String, timeout: Duration) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(timeout).build()?;
    let answer = client.post(url).header(CONTENT_TYPE, "application/json").body(document).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status);
    answer.map(|_| ()).map_err(|error| error.without_url().into())
}
