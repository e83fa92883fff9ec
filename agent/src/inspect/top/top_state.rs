// SPDX-License-Identifier: Apache-2.0
//! What `kube-ipvs top` shows, and how keys change it.

use std::time::Duration;

use super::keyboard::TopKey;
use super::rate_meter::ServiceLoad;
use super::traffic_order::SortOrder;

/// Shortest and longest time between two readings in seconds.
pub const INTERVALS: std::ops::RangeInclusive<u64> = 1..=3600;
/// Longest text of a filter.
const FILTER: usize = 64;

/// What the loop has to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopAction {
    /// Draw what changed.
    Draw,
    /// Draw everything.
    Repaint,
    Quit,
}

/// The line with the cursor and the first line on the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scroll {
    pub cursor: usize,
    pub first: usize,
}

/// The state of the screen.
#[derive(Debug, Default)]
pub struct Top {
    pub node: String,
    pub namespace: Option<String>,
    /// The time of the last reading, as it is shown. Empty: none has ended.
    pub time: String,
    pub interval: u64,
    pub is_paused: bool,
    pub order: SortOrder,
    pub is_reversed: bool,
    /// Why the last reading failed, or why Services are unknown.
    pub problems: Vec<String>,
    pub filter: String,
    /// Whether keys are the text of the filter.
    pub is_typing: bool,
    pub is_help: bool,
    /// All Services, in any order.
    pub(super) services: Vec<ServiceLoad>,
    /// Places of those that are shown.
    pub(super) shown: Vec<usize>,
    /// The name of the Service that is open.
    pub(super) opened: Option<String>,
    pub(super) list: Scroll,
    pub(super) detail: Scroll,
    /// Lines of the table on the screen.
    page: usize,
}

impl Top {
    /// The screen before the first reading.
    pub fn new(node: String, namespace: Option<String>, interval: u64, order: SortOrder) -> Self {
        Self { node, namespace, interval, order, ..Self::default() }
    }

    /// Shows new traffic. The cursor stays on its Service, or on the first line.
    pub fn update(&mut self, services: Vec<ServiceLoad>) {
        let followed = self.followed();
        self.services = services;
        self.select(followed);
    }

    /// How long the loop waits between two readings.
    pub fn pause(&self) -> Duration {
        Duration::from_secs(self.interval)
    }

    /// The open Service; `None` if none is open or it has no virtual servers any more.
    pub(super) fn open_service(&self) -> Option<&ServiceLoad> {
        let name = self.opened.as_ref()?;
        self.services.iter().find(|service| service.name == *name)
    }

    /// The Services on the list, in order.
    pub(super) fn shown_services(&self) -> impl Iterator<Item = &ServiceLoad> {
        self.shown.iter().filter_map(|i| self.services.get(*i))
    }

    fn selected(&self) -> Option<&ServiceLoad> {
        self.services.get(*self.shown.get(self.list.cursor)?)
    }

    /// The Service that the cursor follows when the order changes: none while it stays at the top.
    fn followed(&self) -> Option<String> {
        (self.list.cursor > 0).then(|| self.selected().map(|service| service.name.clone())).flatten()
    }

    fn select(&mut self, followed: Option<String>) {
        self.shown = self.order.select(&self.services, &self.filter, self.is_reversed);
        let place = followed.and_then(|name| self.shown_services().position(|service| service.name == name));
        self.list.cursor = place.unwrap_or(self.list.cursor);
        self.list.fit(self.shown.len(), self.page);
    }

    /// Sets the number of lines that the table has on the screen.
    pub(super) fn fit(&mut self, page: usize) {
        self.page = page;
        self.list.fit(self.shown.len(), page);
        self.detail.fit(self.detail_lines(), page);
    }

    fn detail_lines(&self) -> usize {
        let servers = self.open_service().map(|service| &service.virtual_servers);
        servers.map_or(0, |servers| servers.iter().map(|server| 1 + server.real_servers.len()).sum())
    }

    /// What a key does.
    pub fn key(&mut self, key: TopKey) -> TopAction {
        match key {
            TopKey::Interrupt => return TopAction::Quit,
            TopKey::Repaint => return TopAction::Repaint,
            _ if self.is_typing => self.type_key(key),
            _ if self.is_help => self.is_help = false,
            TopKey::Char('q') => return TopAction::Quit,
            TopKey::Char('h' | '?') => self.is_help = true,
            TopKey::Char(' ') => self.is_paused = !self.is_paused,
            TopKey::Char('+' | '=') => self.interval = (self.interval + 1).min(*INTERVALS.end()),
            TopKey::Char('-') => self.interval = self.interval.saturating_sub(1).max(*INTERVALS.start()),
            TopKey::Char('/') if self.opened.is_none() => self.is_typing = true,
            TopKey::Char('r') => self.sort(self.order, !self.is_reversed),
            TopKey::Char('c') => self.sort(SortOrder::Connections, false),
            TopKey::Char('p') => self.sort(SortOrder::Packets, false),
            TopKey::Char('b') => self.sort(SortOrder::Bytes, false),
            TopKey::Char('d') => self.sort(SortOrder::Drains, false),
            TopKey::Char('n') => self.sort(SortOrder::Name, false),
            TopKey::Enter | TopKey::Right => self.open(),
            TopKey::Escape | TopKey::Left => self.back(key),
            other => self.scroll(other),
        }
        TopAction::Draw
    }

    fn sort(&mut self, order: SortOrder, is_reversed: bool) {
        let followed = self.followed();
        (self.order, self.is_reversed) = (order, is_reversed);
        self.select(followed);
    }

    fn open(&mut self) {
        if self.opened.is_none() {
            self.opened = self.selected().map(|service| service.name.clone());
            self.detail = Scroll::default();
        }
    }

    /// Leaves the open Service. On the list Esc ends the filter.
    fn back(&mut self, key: TopKey) {
        if self.opened.take().is_none() && key == TopKey::Escape {
            self.set_filter(String::new());
        }
    }

    fn type_key(&mut self, key: TopKey) {
        match key {
            TopKey::Enter => self.is_typing = false,
            TopKey::Escape => {
                self.is_typing = false;
                self.set_filter(String::new());
            }
            TopKey::Backspace => {
                let mut filter = self.filter.clone();
                filter.pop();
                self.set_filter(filter);
            }
            TopKey::Char(character) if self.filter.chars().count() < FILTER => {
                self.set_filter(format!("{}{character}", self.filter));
            }
            TopKey::Char(_) => {}
            other => self.scroll(other),
        }
    }

    fn set_filter(&mut self, filter: String) {
        let followed = self.followed();
        self.filter = filter;
        self.select(followed);
    }

    fn scroll(&mut self, key: TopKey) {
        let (lines, page) = match self.opened {
            Some(_) => (self.detail_lines(), self.page),
            None => (self.shown.len(), self.page),
        };
        let scroll = if self.opened.is_some() { &mut self.detail } else { &mut self.list };
        scroll.cursor = match key {
            TopKey::Up => scroll.cursor.saturating_sub(1),
            TopKey::Down => scroll.cursor + 1,
            TopKey::PageUp => scroll.cursor.saturating_sub(page.max(1)),
            TopKey::PageDown => scroll.cursor + page.max(1),
            TopKey::Home => 0,
            TopKey::End => lines,
            _ => return,
        };
        scroll.fit(lines, page);
    }
}

impl Scroll {
    /// Keeps the cursor on a line, and the line on the screen.
    fn fit(&mut self, lines: usize, page: usize) {
        self.cursor = self.cursor.min(lines.saturating_sub(1));
        let last_first = lines.saturating_sub(page.max(1));
        let lowest = (self.cursor + 1).saturating_sub(page.max(1));
        self.first = self.first.clamp(lowest, self.cursor.max(lowest)).min(last_first.max(lowest));
    }
}
