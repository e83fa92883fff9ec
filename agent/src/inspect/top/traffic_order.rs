// SPDX-License-Identifier: Apache-2.0
//! Which Services `kube-ipvs top` shows, and in which order.

use std::cmp::Ordering;

use super::rate_meter::{Load, RealTraffic, ServiceLoad};

/// What the list is sorted by. The most comes first, names in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum SortOrder {
    /// Connections now.
    #[default]
    Connections,
    /// Packets per second.
    Packets,
    /// Bytes per second.
    Bytes,
    /// Real servers of weight 0.
    Drains,
    /// The name of the Service.
    Name,
}

impl SortOrder {
    /// What comes first, then what decides between equals.
    fn weigh(self, load: &Load, draining: usize) -> [f64; 2] {
        let rate = load.per_second.unwrap_or_default();
        let connections = load.connections as f64;
        match self {
            Self::Connections => [connections, rate.connections],
            Self::Packets => [rate.packets, connections],
            Self::Bytes => [rate.bytes, connections],
            Self::Drains => [draining as f64, connections],
            Self::Name => [0.0, 0.0],
        }
    }

    /// Places of the Services that contain `filter`, sorted.
    pub fn select(self, services: &[ServiceLoad], filter: &str, reversed: bool) -> Vec<usize> {
        let filter = filter.to_lowercase();
        let mut weighed: Vec<([f64; 2], &str, usize)> = services
            .iter()
            .enumerate()
            .filter(|(_, service)| filter.is_empty() || service.contains(&filter))
            .map(|(i, service)| (self.weigh(&service.load, service.draining), service.name.as_str(), i))
            .collect();
        weighed.sort_by(|(a, a_name, _), (b, b_name, _)| {
            let order = compare(*a, *b).then_with(|| match self {
                Self::Name => a_name.cmp(b_name),
                _ => Ordering::Equal,
            });
            // Equals keep the order of names, so that a quiet list does not move.
            if reversed { order.reverse() } else { order }.then_with(|| a_name.cmp(b_name))
        });
        weighed.into_iter().map(|(_, _, i)| i).collect()
    }

    /// Real servers of a virtual server, sorted.
    pub fn sort_real_servers(self, reals: &[RealTraffic], reversed: bool) -> Vec<&RealTraffic> {
        let weigh = |real: &RealTraffic| self.weigh(&real.load(), usize::from(real.is_draining()));
        let mut sorted: Vec<&RealTraffic> = reals.iter().collect();
        sorted.sort_by(|a, b| {
            let order = match self {
                Self::Name => a.addr.cmp(&b.addr),
                _ => compare(weigh(a), weigh(b)),
            };
            if reversed { order.reverse() } else { order }.then_with(|| a.addr.cmp(&b.addr))
        });
        sorted
    }
}

/// The greater first.
fn compare(a: [f64; 2], b: [f64; 2]) -> Ordering {
    b[0].total_cmp(&a[0]).then(b[1].total_cmp(&a[1]))
}

impl ServiceLoad {
    /// Whether its name or an address has this text, in lower case.
    fn contains(&self, text: &str) -> bool {
        self.name.to_lowercase().contains(text)
            || self.virtual_servers.iter().any(|server| {
                server.name.to_lowercase().contains(text)
                    || server.real_servers.iter().any(|real| real.addr.to_string().contains(text))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::rate_meter::PerSecond;
    use super::super::top_tests::sample;
    use super::*;

    fn service(
        name: &str,
        connections: u64,
        [new, packets, bytes]: [u32; 3],
        draining: usize,
    ) -> ServiceLoad {
        let [new, packets, bytes] = [new, packets, bytes].map(f64::from);
        let rate = PerSecond { connections: new, packets, bytes };
        let load = Load { connections, per_second: Some(rate) };
        ServiceLoad { name: name.to_owned(), load, draining, ..ServiceLoad::default() }
    }

    fn names<'a>(services: &'a [ServiceLoad], selected: &[usize]) -> Vec<&'a str> {
        selected.iter().map(|i| services[*i].name.as_str()).collect()
    }

    #[test]
    fn every_order_has_the_most_first() {
        let services = [
            service("b", 10, [1, 300, 1], 0),
            service("a", 10, [2, 100, 2], 0),
            service("d", 5, [9, 200, 9], 3),
            service("c", 5, [9, 200, 9], 3),
        ];
        for (order, expected, reverse) in [
            (SortOrder::Connections, "abcd", "cdba"),
            (SortOrder::Packets, "bcda", "acdb"),
            (SortOrder::Bytes, "cdab", "bacd"),
            (SortOrder::Drains, "cdab", "abcd"),
            (SortOrder::Name, "abcd", "dcba"),
        ] {
            assert_eq!(names(&services, &order.select(&services, "", false)).concat(), expected, "{order:?}");
            assert_eq!(names(&services, &order.select(&services, "", true)).concat(), reverse, "{order:?}");
        }
        let unknown = ServiceLoad { name: "e".to_owned(), ..ServiceLoad::default() };
        let services = [unknown, service("f", 0, [1, 1, 1], 0)];
        assert_eq!(SortOrder::Bytes.select(&services, "", false), [1, 0], "no rate is the least");
    }

    #[test]
    fn a_filter_finds_names_and_addresses() {
        let services = sample();
        let found = |text: &str| names(&services, &SortOrder::Name.select(&services, text, false)).join(" ");
        assert_eq!(found("WEB"), "shop/web");
        assert_eq!(found("kube"), "default/kubernetes kube-system/kube-dns");
        assert_eq!(found("10.96.0.10:53"), "kube-system/kube-dns");
        assert_eq!(found("10.244.2.7"), "shop/web");
        assert_eq!(found("nothing"), "");
    }
}
