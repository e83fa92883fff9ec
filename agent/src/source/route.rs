// SPDX-License-Identifier: Apache-2.0
//! The route to the API server: direct, or through the proxy of the kubeconfig or of the environment.

use anyhow::Context;
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// The route to the API server, as messages name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub server: String,
    /// The proxy, and where it is configured.
    pub proxy: Option<String>,
}

impl Route {
    /// `https://10.0.0.1:6443`, with `through the proxy …` where there is one.
    pub fn described(&self) -> String {
        match &self.proxy {
            Some(proxy) => format!("{} through the proxy {proxy}", self.server),
            None => self.server.clone(),
        }
    }

    /// The hosts and ports that the node must reach.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        let host = |text: &str| {
            let url = text.parse::<Uri>().ok()?;
            let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
            let host = url.host()?.trim_matches(['[', ']']).to_owned();
            Some((host, url.port_u16().unwrap_or(usual)))
        };
        let proxy = self.proxy.as_deref().and_then(|proxy| proxy.split(' ').next());
        [Some(self.server.as_str()), proxy].into_iter().flatten().filter_map(host).collect()
    }

    /// The remedy: `direct`, or a check of the proxy if there is one.
    pub fn remedy(&self, direct: &str) -> String {
        match &self.proxy {
            Some(_) => "check the proxy, or add the server to NO_PROXY to connect directly".to_owned(),
            None => direct.to_owned(),
        }
    }
}

/// A proxy, and where it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    pub url: Uri,
    origin: String,
}

impl Proxy {
    /// The proxy to this server, as in client-go: that of the kubeconfig, or that of the environment (`HTTPS_PROXY`, or
    /// `HTTP_PROXY` for `http://`) unless `NO_PROXY` names the server or the server is this host.
    ///
    /// # Errors
    /// The URL of the proxy is invalid.
    pub fn find(
        of_kubeconfig: Option<String>,
        server: &Uri,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        if let Some(url) = of_kubeconfig {
            let url =
                url.parse().with_context(|| format!("proxy-url {url:?} of the kubeconfig is not a URL"))?;
            return Ok(Some(Self { url, origin: "proxy-url of the kubeconfig".to_owned() }));
        }
        let variable = |upper: &str| {
            let value = environment(upper).or_else(|| environment(&upper.to_ascii_lowercase()));
            value.filter(|value| !value.is_empty())
        };
        let name = if server.scheme_str() == Some("http") { "HTTP_PROXY" } else { "HTTPS_PROXY" };
        let Some(value) = variable(name).filter(|_| !is_this_host(server)) else { return Ok(None) };
        let without = variable("NO_PROXY").unwrap_or_default();
        let matcher = Matcher::builder().all(value.clone()).no(without.as_str()).build();
        // The matcher's `*` matches names only.
        if without.split(',').any(|entry| entry.trim() == "*") || matcher.intercept(server).is_none() {
            return Ok(None);
        }
        let with_scheme = if value.contains("://") { value } else { format!("http://{value}") };
        let url = with_scheme.parse().with_context(|| format!("{name} of the environment is not a URL"))?;
        Ok(Some(Self { url, origin: format!("{name} of the environment") }))
    }

    /// `http://proxy:3128 (HTTPS_PROXY of the environment)`, without user and password.
    pub fn described(&self) -> String {
        let host = self.url.host().unwrap_or_default();
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{host}{port} ({})", self.url.scheme_str().unwrap_or("http"), self.origin)
    }
}

fn is_this_host(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(own: Option<&str>, server: &str, environment: &[(&str, &str)]) -> Option<String> {
        let get = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let proxy = Proxy::find(own.map(str::to_owned), &server.parse().unwrap(), get).unwrap();
        proxy.map(|proxy| proxy.described())
    }

    #[test]
    fn the_proxy_of_the_kubeconfig_wins_and_no_proxy_excludes_servers() {
        let server = "https://10.1.2.3:6443";
        let all = [("HTTPS_PROXY", "http://user:secret@proxy:3128"), ("HTTP_PROXY", "http://plain:80")];
        let of_environment = Some("http://proxy:3128 (HTTPS_PROXY of the environment)".to_owned());
        assert_eq!(found(None, server, &all), of_environment);
        assert_eq!(
            found(None, "http://10.1.2.3:8080", &all).unwrap(),
            "http://plain:80 (HTTP_PROXY of the environment)"
        );
        assert_eq!(found(None, server, &[("https_proxy", "proxy:3128")]), of_environment);
        let own = found(Some("http://own:1"), server, &[all[0], ("NO_PROXY", "*")]);
        assert_eq!(own.unwrap(), "http://own:1 (proxy-url of the kubeconfig)");
        for direct in ["10.0.0.0/8", "10.1.2.3", "*", "example.com,10.1.2.3"] {
            assert_eq!(found(None, server, &[all[0], ("NO_PROXY", direct)]), None, "{direct}");
        }
        // An entry for the proxy itself does not concern the server.
        assert_eq!(found(None, server, &[all[0], ("no_proxy", "proxy,192.0.2.0/24")]), of_environment);
        for here in ["https://localhost:6443", "https://127.0.0.1:6443", "https://[::1]:6443"] {
            assert_eq!(found(None, here, &all), None, "{here}");
        }
        assert_eq!(found(None, server, &[("HTTPS_PROXY", "")]), None);
    }
}
