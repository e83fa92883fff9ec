// SPDX-License-Identifier: Apache-2.0
//! The screen of `kube-ipvs top`.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};

use super::draw_detail::draw_detail;
use super::figures::scaled;
use super::rate_meter::Load;
use super::table_columns::{LIST, NAME, TablePlan, cut, service_cells};
use super::top_state::Top;
use crate::words;

/// Lower screens leave the counts of objects out.
const HIGH: u16 = 12;

/// Lines of a text about what went wrong. A longer one has a line with its begin.
const PROBLEM_LINES: usize = 4;

const KEYS: &str = "q quit  Enter open  / filter  c p b d n sort  r reverse  Space pause  h help";
const DETAIL_KEYS: &str = "q quit  Esc back  c p b d n sort  r reverse  Space pause  h help";

const HELP: &[&str] = &[
    "Up Down PgUp PgDn   move; Home End: first, last",
    "Enter or Right      open a Service",
    "Esc or Left         back",
    "c p b d n           sort by connections,",
    "                    packets, bytes,",
    "                    drains, name",
    "r                   reverse the order",
    "/                   filter by name or address",
    "                    (Enter keeps, Esc ends)",
    "+ -                 change the interval",
    "Space               pause",
    "Ctrl-L              repaint the screen",
    "q                   quit",
    "",
    "CONNS: active and inactive connections.",
    "Rates: since the reading before, both directions.",
    "The kernel adds up its counters every 2 s.",
    "DRAINING: real servers of weight 0.",
];

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    has_color: bool,
}

impl Palette {
    pub(super) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn head(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The line with the cursor.
    pub(super) fn cursor(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED);
        if self.has_color { style.fg(Color::Cyan) } else { style }
    }

    pub(super) fn warning(self) -> Style {
        if self.has_color { Style::new().fg(Color::Yellow) } else { Style::new() }
    }

    fn bad(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.has_color { style.fg(Color::Red) } else { style }
    }

    fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws everything. A screen of any size has as much as it has place for.
pub fn draw(top: &mut Top, has_color: bool, area: Rect, buffer: &mut Buffer) {
    let palette = Palette { has_color };
    let mut y = area.y;
    for (text, style) in head_lines(top, area, palette) {
        draw_text(Rect { y, ..area }, area, &text, style, buffer);
        y = y.saturating_add(1);
    }
    let foot = area.bottom().saturating_sub(1).max(y);
    // One more line has the titles.
    let table = Rect { y, height: foot.saturating_sub(y), ..area };
    top.fit(usize::from(table.height.saturating_sub(1)));
    match () {
        () if top.is_help => draw_help(table, area, buffer),
        () if top.opened.is_some() => draw_detail(top, palette, table, buffer),
        () => draw_list(top, palette, table, buffer),
    }
    let (text, style) = foot_line(top, palette);
    draw_text(Rect { y: foot, ..area }, area, &text, style, buffer);
}

/// One line of text, if the screen has it.
pub(super) fn draw_text(at: Rect, area: Rect, text: &str, style: Style, buffer: &mut Buffer) {
    if at.y < area.bottom() && area.width > 0 {
        let width = usize::from(area.width);
        buffer.set_stringn(at.x, at.y, cut(text, width), width, style);
    }
}

fn head_lines(top: &Top, area: Rect, palette: Palette) -> Vec<(String, Style)> {
    let mut lines = vec![(title(top, area.width), palette.title())];
    let total = top.shown_services().fold(Load::default(), |mut sum, service| {
        sum.add(service.load);
        sum
    });
    let rate = total.per_second.unwrap_or_default();
    let services = match (top.shown.len(), top.services.len()) {
        (shown, all) if shown < all => format!("{shown} of {}", words::count(all, "Service")),
        (_, all) => words::count(all, "Service"),
    };
    let (packets, bytes) = (scaled(rate.packets), scaled(rate.bytes));
    if area.height < HIGH {
        lines.push((format!("{services}  {packets} packets/s  {bytes} bytes/s"), Style::new()));
    } else {
        let sum = |of: fn(&super::rate_meter::ServiceLoad) -> usize| top.shown_services().map(of).sum();
        let virtual_servers = words::count(sum(|service| service.virtual_servers.len()), "virtual server");
        let real_servers = words::count(sum(|service| service.real_servers), "real server");
        let draining = words::thousands(sum(|service| service.draining));
        let counts = format!("{services}  {virtual_servers}  {real_servers}  {draining} draining");
        let connections =
            words::count(usize::try_from(total.connections).unwrap_or(usize::MAX), "connection");
        let new = scaled(rate.connections);
        lines.push((counts, Style::new()));
        lines.push((
            format!("{connections}  {new} conn/s  {packets} packets/s  {bytes} bytes/s"),
            Style::new(),
        ));
    }
    let problems = top.problems.join("; ");
    let most = if area.height < HIGH { 1 } else { PROBLEM_LINES };
    let wrapped = textwrap::wrap(&problems, usize::from(area.width.max(1)));
    if wrapped.len() > most || area.width == 0 {
        lines.push((problems, palette.bad()));
    } else if !problems.is_empty() {
        lines.extend(wrapped.into_iter().map(|line| (line.into_owned(), palette.bad())));
    }
    lines
}

fn title(top: &Top, width: u16) -> String {
    let mut parts = Vec::new();
    if width >= 60 {
        parts.push("kube-ipvs top".to_owned());
    }
    parts.push(top.node.clone());
    let time = if top.time.is_empty() { "no reading yet" } else { top.time.as_str() };
    parts.push(time.to_owned());
    if top.is_paused {
        parts.push("paused".to_owned());
    }
    parts.push(format!("every {} s", top.interval));
    let order = <&str>::from(top.order);
    parts.push(format!("by {order}{}", if top.is_reversed { ", reversed" } else { "" }));
    parts.extend(top.namespace.as_ref().map(|namespace| format!("namespace {namespace}")));
    parts.join("  ")
}

fn foot_line(top: &Top, palette: Palette) -> (String, Style) {
    match () {
        () if top.is_typing => (format!("/{}_", top.filter), palette.title()),
        () if top.is_help => ("any key: back".to_owned(), palette.dim()),
        () if top.opened.is_some() => (DETAIL_KEYS.to_owned(), palette.dim()),
        () if !top.filter.is_empty() => {
            (format!("filter: {}  (/ changes it, Esc ends it)", top.filter), palette.title())
        }
        () => (KEYS.to_owned(), palette.dim()),
    }
}

fn draw_help(table: Rect, area: Rect, buffer: &mut Buffer) {
    for (y, line) in (table.y..table.bottom()).zip(HELP) {
        draw_text(Rect { y, ..table }, area, line, Style::new(), buffer);
    }
}

fn draw_list(top: &Top, palette: Palette, table: Rect, buffer: &mut Buffer) {
    if table.is_empty() {
        return;
    }
    let plan = TablePlan::new(table, LIST, NAME, top.order);
    plan.draw_titles(table.y, "SERVICE", palette.head(), buffer);
    let lines = top.shown_services().enumerate().skip(top.list.first);
    for (y, (i, service)) in (table.y + 1..table.bottom()).zip(lines) {
        let style = match () {
            () if i == top.list.cursor => palette.cursor(),
            () if service.draining > 0 => palette.warning(),
            () => Style::new(),
        };
        plan.draw_cells(y, &service.name, &service_cells(service), style, buffer);
    }
    if top.shown.is_empty() && !top.time.is_empty() {
        let text = if top.services.is_empty() { "no virtual servers" } else { "no Service has this text" };
        draw_text(Rect { y: table.y + 1, ..table }, table, text, palette.dim(), buffer);
    }
}
