// SPDX-License-Identifier: Apache-2.0
//! One Service on the screen of `kube-ipvs top`: its virtual servers, each with its real servers.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Style;

use super::draw_top::{Palette, draw_text};
use super::rate_meter::{RealTraffic, ServiceLoad, VirtualTraffic};
use super::table_columns::{DETAIL, TablePlan, real_cells, virtual_cells};
use super::top_state::Top;

/// The width that addresses of IPv4 need, and the most that those of IPv6 get before numbers are left out.
const ADDRESS: std::ops::RangeInclusive<usize> = 23..=48;

/// A line of the table.
enum DetailLine<'a> {
    Virtual(&'a VirtualTraffic),
    Real(&'a RealTraffic),
}

/// Draws the open Service below its name, which is the title of the first column.
pub(super) fn draw_detail(top: &Top, palette: Palette, table: Rect, buffer: &mut Buffer) {
    if table.is_empty() {
        return;
    }
    let name_width = top.open_service().map_or(0, address_width).clamp(*ADDRESS.start(), *ADDRESS.end());
    let plan = TablePlan::new(table, DETAIL, name_width as u16, top.order);
    plan.draw_titles(table.y, top.opened.as_deref().unwrap_or_default(), palette.head(), buffer);
    let Some(service) = top.open_service() else {
        let text = "the Service has no virtual servers any more";
        draw_text(Rect { y: table.y + 1, ..table }, table, text, palette.warning(), buffer);
        return;
    };
    let lines = service.virtual_servers.iter().flat_map(|server| {
        let reals = top.order.sort_real_servers(&server.real_servers, top.is_reversed);
        std::iter::once(DetailLine::Virtual(server)).chain(reals.into_iter().map(DetailLine::Real))
    });
    for (y, (i, line)) in (table.y + 1..table.bottom()).zip(lines.enumerate().skip(top.detail.first)) {
        let (name, cells, usual) = match line {
            DetailLine::Virtual(server) => (virtual_name(server), virtual_cells(server), palette.title()),
            DetailLine::Real(real) if real.is_draining() => {
                (real_name(real), real_cells(real), palette.warning())
            }
            DetailLine::Real(real) => (real_name(real), real_cells(real), Style::new()),
        };
        let style = if i == top.detail.cursor { palette.cursor() } else { usual };
        plan.draw_cells(y, &name, &cells, style, buffer);
    }
}

fn virtual_name(server: &VirtualTraffic) -> String {
    let blank = if server.port_name.is_empty() { "" } else { " " };
    format!("{}{blank}{} {}", server.name, server.port_name, server.scheduler)
}

fn real_name(real: &RealTraffic) -> String {
    format!("  {}", real.addr)
}

/// The longest address of a Service.
fn address_width(service: &ServiceLoad) -> usize {
    let widths = service.virtual_servers.iter().flat_map(|server| {
        let reals = server.real_servers.iter().map(|real| real_name(real).len());
        reals.chain(std::iter::once(server.name.len()))
    });
    widths.max().unwrap_or_default()
}
