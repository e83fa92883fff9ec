// SPDX-License-Identifier: Apache-2.0
//! The columns of `kube-ipvs top`: a name on the left, numbers on the right. Narrow screens have fewer of them.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Modifier, Style};

use super::figures::{figure, rate_cells};
use super::rate_meter::{RealTraffic, ServiceLoad, VirtualTraffic};
use super::traffic_order::SortOrder;

/// Columns are left out until the name of a Service has this width.
pub(super) const NAME: u16 = 16;
/// A wider name would be too far from its numbers.
const WIDEST_NAME: u16 = 64;
/// Below this width of the screen titles are short.
const WIDE: u16 = 80;

/// A column of numbers.
#[derive(Debug)]
pub(super) struct TableColumn {
    pub title: &'static str,
    /// Where there is no place for the title.
    short: &'static str,
    width: u16,
    /// The column with the greatest number is left out first; 0 stays.
    leave_out: u8,
    order: Option<SortOrder>,
}

const fn column(
    title: &'static str,
    short: &'static str,
    width: u16,
    leave_out: u8,
    order: Option<SortOrder>,
) -> TableColumn {
    TableColumn { title, short, width, leave_out, order }
}

const CONNECTION_RATE: TableColumn = column("CONN/s", "CONN/s", 6, 2, None);
const PACKET_RATE: TableColumn = column("PKTS/s", "PKTS/s", 6, 5, Some(SortOrder::Packets));
const BYTE_RATE: TableColumn = column("BYTES/s", "BYTES/s", 7, 0, Some(SortOrder::Bytes));

/// Those of the list of Services.
pub(super) const LIST: &[TableColumn] = &[
    column("CONNS", "CONNS", 7, 0, Some(SortOrder::Connections)),
    CONNECTION_RATE,
    PACKET_RATE,
    BYTE_RATE,
    column("REAL SERVERS", "REAL", 5, 4, None),
    column("DRAINING", "DRAIN", 5, 3, Some(SortOrder::Drains)),
];

/// Those of an open Service.
pub(super) const DETAIL: &[TableColumn] = &[
    column("WEIGHT", "WGHT", 4, 3, None),
    column("ACTIVE", "ACTIVE", 7, 0, Some(SortOrder::Connections)),
    column("INACTIVE", "INACT", 6, 1, Some(SortOrder::Connections)),
    CONNECTION_RATE,
    PACKET_RATE,
    BYTE_RATE,
    column("DRAINING", "DRAIN", 5, 4, Some(SortOrder::Drains)),
];

/// The numbers of a Service, for [`LIST`].
pub(super) fn service_cells(service: &ServiceLoad) -> Vec<String> {
    let [connections, packets, bytes] = rate_cells(&service.load);
    let real_servers = service.real_servers.to_string();
    vec![
        figure(service.load.connections),
        connections,
        packets,
        bytes,
        real_servers,
        service.draining.to_string(),
    ]
}

/// The numbers of a virtual server, for [`DETAIL`].
pub(super) fn virtual_cells(server: &VirtualTraffic) -> Vec<String> {
    let sum = |of: fn(&RealTraffic) -> u32| server.real_servers.iter().map(|real| u64::from(of(real))).sum();
    let [connections, packets, bytes] = rate_cells(&server.load());
    let (active, inactive) = (figure(sum(|real| real.active)), figure(sum(|real| real.inactive)));
    vec![String::new(), active, inactive, connections, packets, bytes, server.draining().to_string()]
}

/// The numbers of a real server, for [`DETAIL`].
pub(super) fn real_cells(real: &RealTraffic) -> Vec<String> {
    let [connections, packets, bytes] = rate_cells(&real.load());
    let draining = if real.is_draining() { "yes" } else { "" };
    let (active, inactive) = (figure(real.active.into()), figure(real.inactive.into()));
    vec![real.weight.to_string(), active, inactive, connections, packets, bytes, draining.to_owned()]
}

/// The columns that a screen has place for.
#[derive(Debug)]
pub(super) struct TablePlan {
    area: Rect,
    name_width: u16,
    /// Places in the list of all columns, with their titles and widths.
    columns: Vec<(usize, &'static str, u16)>,
    sorted: Vec<bool>,
}

impl TablePlan {
    /// Leaves out columns until names have a width of `name`.
    pub(super) fn new(area: Rect, all: &'static [TableColumn], name: u16, order: SortOrder) -> Self {
        let is_wide = area.width >= WIDE;
        let title = |column: &TableColumn| if is_wide { column.title } else { column.short };
        let width = |column: &TableColumn| column.width.max(title(column).len() as u16);
        let mut kept: Vec<usize> = (0..all.len()).collect();
        let room = |kept: &[usize]| {
            let taken: u16 = kept.iter().filter_map(|i| all.get(*i)).map(|column| width(column) + 1).sum();
            area.width.saturating_sub(taken)
        };
        let leave_out = |i: &usize| all.get(*i).map_or(0, |column| column.leave_out);
        while room(&kept) < name
            && let Some(least) = kept.iter().copied().max_by_key(leave_out)
            && leave_out(&least) > 0
        {
            kept.retain(|i| *i != least);
        }
        let known: Vec<(usize, &TableColumn)> =
            kept.iter().filter_map(|i| Some((*i, all.get(*i)?))).collect();
        Self {
            area,
            name_width: room(&kept).min(WIDEST_NAME),
            columns: known.iter().map(|(i, column)| (*i, title(column), width(column))).collect(),
            sorted: known.iter().map(|(_, column)| column.order == Some(order)).collect(),
        }
    }

    /// The line with the titles. The column that sorts is underlined.
    pub(super) fn draw_titles(&self, y: u16, name: &str, style: Style, buffer: &mut Buffer) {
        let titles: Vec<(&str, Style)> = (self.columns.iter().zip(&self.sorted))
            .map(|((_, title, _), sorted)| match sorted {
                true => (*title, style.add_modifier(Modifier::UNDERLINED)),
                false => (*title, style),
            })
            .collect();
        self.draw_line(y, name, &titles, style, buffer);
    }

    /// A line with a cell for each of all columns.
    pub(super) fn draw_cells(&self, y: u16, name: &str, cells: &[String], style: Style, buffer: &mut Buffer) {
        let kept = self.columns.iter();
        let cells: Vec<(&str, Style)> =
            kept.map(|(i, ..)| (cells.get(*i).map_or("", String::as_str), style)).collect();
        self.draw_line(y, name, &cells, style, buffer);
    }

    fn draw_line(&self, y: u16, name: &str, cells: &[(&str, Style)], style: Style, buffer: &mut Buffer) {
        if y >= self.area.bottom() {
            return;
        }
        buffer.set_style(Rect { y, height: 1, ..self.area }, style);
        let name = cut(name, usize::from(self.name_width));
        buffer.set_stringn(self.area.x, y, name, usize::from(self.name_width), style);
        let mut x = self.area.x + self.name_width;
        for ((_, _, width), (cell, style)) in self.columns.iter().zip(cells) {
            let left = width.saturating_sub(cell.len() as u16) + 1;
            if x + left < self.area.right() {
                buffer.set_stringn(x + left, y, cell, usize::from(*width), *style);
            }
            x += width + 1;
        }
    }
}

/// The text in this width; `~` stands for the rest.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + if width > 0 { "~" } else { "" }
}
