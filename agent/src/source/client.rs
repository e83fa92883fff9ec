// SPDX-License-Identifier: Apache-2.0
//! How the API server is reached: credentials, connections that are noticed when they die, and no
//! retries below the one place that paces them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hyper::header::RETRY_AFTER;
use hyper::{Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig};
use tower::timeout::TimeoutLayer;
use tower::util::MapResponseLayer;
use tower::{BoxError, ServiceBuilder};

use super::route::Proxy;
pub use super::route::Route;
use crate::metrics::Metrics;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// A silent peer is asked after so long, then every [`PROBE`], so many times: dead within 45 s.
const SILENCE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// What was sent and is not acknowledged for so long will not be (RFC 5482).
const UNACKNOWLEDGED: Duration = Duration::from_secs(40);

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// A kubeconfig file; without it and without `master` the pod's service account is used.
    pub kubeconfig: Option<String>,
    /// A URL that replaces the kubeconfig's or the pod's server.
    pub master: Option<String>,
}

/// When the server last asked to be left alone (`Retry-After`), and for how long.
#[derive(Clone, Debug, Default)]
pub struct AskedPause(Arc<Mutex<Option<Instant>>>);

impl AskedPause {
    fn note<B>(&self, response: Response<B>) -> Response<B> {
        if response.status() != StatusCode::TOO_MANY_REQUESTS && !response.status().is_server_error() {
            return response;
        }
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(seconds) = seconds {
            let until = Instant::now().checked_add(Duration::from_secs(seconds));
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
        response
    }

    /// How much of it is left.
    pub fn left(&self, now: Instant) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map(|until| until.saturating_duration_since(now)).unwrap_or_default()
    }
}

/// A client, and what it learned about the server.
#[derive(Clone)]
pub struct ApiClient {
    /// The client.
    pub client: Client,
    /// Where its requests go.
    pub route: Route,
    /// What it asked for.
    pub asked: AskedPause,
}

impl ApiAccess {
    /// With the field `clientConnection.kubeconfig` and the flag `--master`.
    pub fn new(kubeconfig: &str, master: Option<String>) -> Self {
        Self { kubeconfig: Some(kubeconfig.to_owned()).filter(|path| !path.is_empty()), master }
    }

    /// Reads the credentials. The server itself is not contacted. Requests are counted in `metrics`;
    /// one whose answer does not begin within `answer` is given up.
    ///
    /// # Errors
    /// Names the file or variable that is missing or wrong.
    pub async fn client(&self, metrics: &Metrics, answer: Duration) -> anyhow::Result<ApiClient> {
        let (mut config, of_kubeconfig) = self.config().await?;
        if let Some(master) = &self.master {
            config.cluster_url = master.parse().with_context(|| format!("--master {master:?} is no URL"))?;
            ensure!(
                config.cluster_url.scheme().is_some() && config.cluster_url.host().is_some(),
                "--master {master:?} is no URL: write it as https://HOST:PORT"
            );
        }
        let proxy = match self.kubeconfig {
            Some(_) => Proxy::find(of_kubeconfig, &config.cluster_url, |name| std::env::var(name).ok())?,
            None => None,
        };
        config.proxy_url = proxy.as_ref().map(|proxy| proxy.url.clone());
        // Its pauses would add to ours, and nobody would see them.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        tracing::info!(server = %config.cluster_url, "following the Kubernetes API");
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let count = metrics.count_requests(&host);
        let asked = AskedPause::default();
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let route = Route { server, proxy: proxy.as_ref().map(Proxy::described) };
        let timeout = TimeoutLayer::new(answer);
        let noted = asked.clone();
        let client = if proxy.is_some() {
            let stack = ClientBuilder::try_from(config)
                .with_context(|| format!("cannot use the way to {}", route.described()))?;
            let note = MapResponseLayer::new(move |response| noted.note(response));
            stack.with_layer(&note).with_layer(&timeout).with_layer(&count).build()
        } else {
            let stack = ClientBuilder::new(connection(&config)?, config.default_namespace.clone());
            let note = MapResponseLayer::new(move |response: Answer| noted.note(response));
            stack.with_layer(&note).with_layer(&timeout).with_layer(&count).build()
        };
        Ok(ApiClient { client, route, asked })
    }

    /// The configuration, and the kubeconfig's own proxy.
    async fn config(&self) -> anyhow::Result<(kube::Config, Option<String>)> {
        let Some(path) = &self.kubeconfig else {
            // The service account's token and CA, with another address.
            return match (kube::Config::incluster(), &self.master) {
                (Ok(config), _) => Ok((config, None)),
                (Err(_), Some(master)) => Ok((kube::Config::new(master.parse().context("--master")?), None)),
                (Err(error), None) => Err(error).context(
                    "no API server is configured and this is no pod: set clientConnection.kubeconfig in the \
                     configuration file, or --master, or use --objects",
                ),
            };
        };
        let kubeconfig = Kubeconfig::read_from(Path::new(path))
            .with_context(|| format!("cannot use the kubeconfig {path}"))?;
        let cluster = current_cluster(&kubeconfig);
        let authority = cluster.and_then(|cluster| cluster.certificate_authority.as_ref()).map(PathBuf::from);
        let proxy = cluster.and_then(|cluster| cluster.proxy_url.clone()).filter(|url| !url.is_empty());
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("the kubeconfig {path} is incomplete"))?;
        // With its name the file is read again when it changes.
        config.root_cert_file = authority;
        Ok((config, proxy))
    }
}

/// The cluster of the current context.
fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|c| c.name == *current)?.context.as_ref()?;
    kubeconfig.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()
}

type Answer = Response<hyper::body::Incoming>;

/// The layers of a request, from its path to its connection.
fn connection(
    config: &kube::Config,
) -> anyhow::Result<
    impl tower::Service<hyper::Request<Body>, Response = Answer, Error = BoxError, Future: Send>
    + Send
    + 'static
    + use<>,
> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(SILENCE));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut config = config.clone();
    if config.cluster_url.scheme_str() == Some("http") {
        // No certificate will come: the CAs of the system, which stand in for none, need not be read.
        config.root_cert.get_or_insert_default();
    }
    let https = config.rustls_https_connector_with_connector(connector);
    let https = https.context("cannot set up TLS: check the certificates of the kubeconfig")?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https);
    let auth = config.auth_layer().context("cannot use the credentials of the API client")?;
    Ok(ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(config.extra_headers_layer().context("impersonation")?)
        .map_err(BoxError::from)
        .service(client))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(access: &ApiAccess) -> Result<ApiClient, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let metrics = Metrics::new().unwrap();
        runtime.block_on(access.client(&metrics, CONNECT)).map_err(|error| format!("{error:#}"))
    }

    fn with_kubeconfig(text: &str) -> (tempfile::TempDir, ApiAccess) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        let kubeconfig = Some(path.to_str().unwrap().to_owned());
        (dir, ApiAccess { kubeconfig, master: None })
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let cluster = |more: &str, user: &str| {
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, \
                 user: u}}}}]\nclusters: [{{name: k, cluster: {{server: \"https://192.0.2.1:6443\"{more}}}}}]\n\
                 users: [{{name: u, user: {{{user}}}}}]\n"
            )
        };
        for (text, expected) in [
            ("{", "kubeconfig"),
            ("kind: [", "kubeconfig"),
            ("apiVersion: v1\nkind: Config\n", "incomplete"),
            (&cluster("", "").replace("current-context: c", "current-context: x"), "incomplete"),
            (&cluster(", certificate-authority: /nonexistent/ca.crt", ""), "/nonexistent/ca.crt"),
            (
                &cluster("", "client-certificate: /nonexistent/crt, client-key: /nonexistent/key"),
                "/nonexistent",
            ),
        ] {
            let (_dir, access) = with_kubeconfig(text);
            let error = client(&access).err().unwrap_or_default();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
        let missing = ApiAccess { kubeconfig: Some("/nonexistent/kubeconfig".into()), master: None };
        assert!(client(&missing).err().unwrap().contains("/nonexistent/kubeconfig"));
        for url in ["not a url", "192.0.2.1:x", "/path"] {
            let wrong = ApiAccess { kubeconfig: None, master: Some(url.to_owned()) };
            assert!(client(&wrong).err().unwrap().contains("--master"), "{url}");
        }
        let nothing = client(&ApiAccess::default()).err().unwrap();
        assert!(nothing.contains("clientConnection.kubeconfig"), "{nothing}");
        let (_dir, good) = with_kubeconfig(&cluster("", ""));
        assert!(client(&good).is_ok());
    }

    #[test]
    fn the_cluster_of_the_current_context_is_the_one() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, \
                    user: u}}]\nclusters: [{name: k, cluster: {server: 'https://x', certificate-authority: \
                    /etc/ca.crt}}]\n";
        let kubeconfig = Kubeconfig::from_yaml(text).unwrap();
        let authority = current_cluster(&kubeconfig).unwrap().certificate_authority.as_deref();
        assert_eq!(authority, Some("/etc/ca.crt"));
    }
}
