// SPDX-License-Identifier: Apache-2.0
//! The client of the API server: credentials, and connections that are found dead in time. It does not retry by
//! itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig};
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

use super::monitor::Monitor;
use super::request_layer::{RequestLayer, RetryAfter};
use super::route::Proxy;
pub use super::route::Route;

/// Timeout of a new connection.
const CONNECT: Duration = Duration::from_secs(10);
/// TCP keepalive: probes begin after `SILENCE`, one every [`PROBE`]; a dead peer is found within 45 s.
const SILENCE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// TCP user timeout (RFC 5482) for data that is not acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(40);

/// Where the API server is and which credentials to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// A kubeconfig file; `None`: the service account of the pod.
    pub kubeconfig: Option<String>,
    /// A URL that replaces that of the kubeconfig or of the pod.
    pub master: Option<String>,
}

#[derive(Clone)]
pub struct ApiClient {
    pub client: Client,
    pub route: Route,
    pub retry_after: RetryAfter,
    /// Receives reports of requests and watches.
    pub monitor: Arc<dyn Monitor>,
}

impl ApiAccess {
    /// From the field `clientConnection.kubeconfig` and the flag `--master`.
    pub fn new(kubeconfig: &str, master: Option<String>) -> Self {
        Self { kubeconfig: Some(kubeconfig.to_owned()).filter(|path| !path.is_empty()), master }
    }

    /// Reads the credentials, without a request to the server. `monitor` gets a report of each request; a request
    /// fails if its answer does not begin within `answer`.
    ///
    /// # Errors
    /// Names the file or variable that is missing or wrong.
    pub async fn client(&self, monitor: Arc<dyn Monitor>, answer: Duration) -> anyhow::Result<ApiClient> {
        // Fails only at a second call in one process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut config, of_kubeconfig) = self.config().await?;
        if let Some(master) = &self.master {
            config.cluster_url =
                master.parse().with_context(|| format!("--master {master:?} is not a URL"))?;
            ensure!(
                config.cluster_url.scheme().is_some() && config.cluster_url.host().is_some(),
                "--master {master:?} is not a URL: write it as https://HOST:PORT"
            );
        }
        let proxy = match self.kubeconfig {
            Some(_) => Proxy::find(of_kubeconfig, &config.cluster_url, |name| std::env::var(name).ok())?,
            None => None,
        };
        config.proxy_url = proxy.as_ref().map(|proxy| proxy.url.clone());
        // The client's own pauses would add to those of the reflectors, unseen in the log.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        tracing::info!(server = %config.cluster_url, "following the Kubernetes API");
        let retry_after = RetryAfter::default();
        let layer = RequestLayer {
            monitor: monitor.clone(),
            host: config.cluster_url.authority().map_or("", |host| host.as_str()).into(),
            retry_after: retry_after.clone(),
        };
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let route = Route { server, proxy: proxy.as_ref().map(Proxy::described) };
        let timeout = TimeoutLayer::new(answer);
        let client = if proxy.is_some() {
            let stack = ClientBuilder::try_from(config)
                .with_context(|| format!("cannot set up the connection to {}", route.described()))?;
            stack.with_layer(&timeout).with_layer(&layer).build()
        } else {
            let stack = ClientBuilder::new(connection(&config)?, config.default_namespace.clone());
            stack.with_layer(&timeout).with_layer(&layer).build()
        };
        Ok(ApiClient { client, route, retry_after, monitor })
    }

    /// The client's configuration and the proxy of the kubeconfig.
    async fn config(&self) -> anyhow::Result<(kube::Config, Option<String>)> {
        let Some(path) = &self.kubeconfig else {
            // The token and CA of the service account, with another address.
            return match (kube::Config::incluster(), &self.master) {
                (Ok(config), _) => Ok((config, None)),
                (Err(_), Some(master)) => Ok((kube::Config::new(master.parse().context("--master")?), None)),
                (Err(error), None) => Err(error).context(
                    "no API server is configured and this is not a pod: set clientConnection.kubeconfig in the \
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
        // With its path, kube reads the file again when it changes.
        config.root_cert_file = authority;
        Ok((config, proxy))
    }
}

fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|c| c.name == *current)?.context.as_ref()?;
    kubeconfig.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()
}

type HttpResponse = hyper::Response<hyper::body::Incoming>;

/// The layers of a request, from its path to its connection.
fn connection(
    config: &kube::Config,
) -> anyhow::Result<
    impl tower::Service<hyper::Request<Body>, Response = HttpResponse, Error = BoxError, Future: Send>
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
        // No certificate is received: do not read the CAs of the system.
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
        runtime.block_on(access.client(Arc::new(()), CONNECT)).map_err(|error| format!("{error:#}"))
    }

    fn with_kubeconfig(text: &str) -> (tempfile::TempDir, ApiAccess) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        let kubeconfig = Some(path.to_str().unwrap().to_owned());
        (dir, ApiAccess { kubeconfig, master: None })
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_names_it() {
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
