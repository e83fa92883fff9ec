// SPDX-License-Identifier: Apache-2.0
//! The one table of `kube-ipvs top --once`.

use super::rate_meter::ServiceLoad;
use super::table_columns::{LIST, service_cells};
use super::traffic_order::SortOrder;

/// All Services, a line each, with aligned columns.
pub fn once_table(services: &[ServiceLoad], order: SortOrder) -> String {
    let mut rows = vec![("SERVICE", LIST.iter().map(|column| column.title.to_owned()).collect::<Vec<_>>())];
    let selected = order.select(services, "", false);
    let shown = selected.iter().filter_map(|i| services.get(*i));
    rows.extend(shown.map(|service| (service.name.as_str(), service_cells(service))));
    let name_width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let width = |i: usize| rows.iter().filter_map(|(_, cells)| cells.get(i)).map(String::len).max();
    let widths: Vec<usize> = (0..LIST.len()).map(|i| width(i).unwrap_or_default()).collect();
    let line = |(name, cells): &(&str, Vec<String>)| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{name:<name_width$}{}\n", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::top_tests::sample;
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let expected = "\
SERVICE               CONNS  CONN/s  PKTS/s  BYTES/s  REAL SERVERS  DRAINING
shop/web                425      30    1.3K     1.3M             5         1
default/kubernetes       21       0      45      12K             3         0
kube-system/kube-dns      9     250     500      64K             4         0
UDP 192.0.2.77:5000       0       -       -        -             0         0
";
        assert_eq!(once_table(&sample(), SortOrder::Connections), expected);
    }
}
