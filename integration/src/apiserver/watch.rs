// SPDX-License-Identifier: Apache-2.0
//! Open watches.

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use hyper::body::{Bytes, Frame};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::http::status;
use super::request::{Options, Refusal, Target};
use super::selector::render_event;
use super::{Shared, State, Streaming};

/// Time for sent data to leave before the connection is reset.
pub(super) const FLUSH: Duration = Duration::from_millis(30);

/// What a kube-apiserver over etcd 3.4 says.
const NO_PROGRESS: &str = "a watch stream was requested by the client but the required storage feature \
                           RequestWatchProgress is disabled";

/// Time between the rounds of a list without end.
const AGAIN: Duration = Duration::from_millis(20);

const HALF_A_LINE: &str = "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"";

/// One open watch.
pub(super) struct Watching {
    shared: Arc<Shared>,
    target: Target,
    options: Options,
    /// All changes up to this version were sent.
    version: u64,
    generation: u64,
    /// Injected lines seen so far.
    injected: usize,
    /// The objects that were there at the start are still to be sent.
    initial: bool,
    ending: Option<End>,
    /// When the next bookmark is due.
    bookmark: Option<Instant>,
    timeout: Option<Instant>,
    changed: tokio::sync::watch::Receiver<u64>,
}

/// How the watch ends once everything before is sent.
#[derive(Clone, Copy)]
enum End {
    /// As it should.
    Proper,
    /// Torn down, after half a line.
    Torn,
}

enum Step {
    Send(String),
    Wait(Option<Instant>),
    End,
    Cut,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.state().watches -= 1;
    }
}

/// Whether a watch from its version can start, were it not for an open one to say so.
pub(super) fn check(state: &State, target: &Target, options: &Options) -> Result<(), Refusal> {
    if options.initial && state.faults.streaming == Streaming::Refused {
        let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Refusal::forbidden("sendInitialEvents", why));
    }
    let from = options.version.unwrap_or(0);
    let gone = from > 0 && !options.initial && state.objects.since(from, target.resource.kind).is_none();
    if gone && state.faults.gone_as_status {
        return Err(Refusal::expired(from, state.objects.version()));
    }
    Ok(())
}

impl Watching {
    /// A watch that starts when its first lines are polled.
    pub(super) fn new(shared: &Arc<Shared>, target: Target, options: Options) -> Self {
        let changed = shared.changed.subscribe();
        let mut state = shared.state();
        state.watches += 1;
        let from = options.version.unwrap_or(0);
        Self {
            shared: shared.clone(),
            // Without a version a watch starts with everything there is, as with a streaming list.
            initial: options.initial || from == 0,
            version: from,
            generation: state.generation,
            injected: state.injected.len(),
            ending: None,
            bookmark: options.bookmarks.then(|| Instant::now() + state.bookmark_interval),
            timeout: options.timeout.map(|timeout| Instant::now() + timeout),
            target,
            options,
            changed,
        }
    }

    /// The lines, as they come.
    pub(super) fn lines(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        stream::unfold(self, |mut watching| async move {
            let chunk = watching.next().await?;
            Some((chunk.map(|text| Frame::data(Bytes::from(text))), watching))
        })
    }

    /// The next lines; `None` ends the watch properly, an error cuts it off.
    async fn next(&mut self) -> Option<io::Result<String>> {
        match self.ending {
            Some(End::Proper) => return None,
            Some(End::Torn) => return Some(self.cut().await),
            None => {}
        }
        loop {
            self.changed.borrow_and_update();
            let until = match self.step() {
                Step::Send(text) => return Some(Ok(text)),
                Step::Wait(until) => until,
                Step::End => return None,
                Step::Cut => return Some(self.cut().await),
            };
            let clock = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => { changed.ok()?; }
                () = clock => {}
            }
        }
    }

    async fn cut(&mut self) -> io::Result<String> {
        sleep(FLUSH).await;
        self.ending = Some(End::Proper);
        Err(io::Error::other("cut off"))
    }

    /// What there is to do now. All of it happens under the lock: no change gets lost in between.
    fn step(&mut self) -> Step {
        let shared = self.shared.clone();
        let state = shared.state();
        if self.generation != state.generation {
            if !state.torn {
                return Step::Cut;
            }
            self.ending = Some(End::Torn);
            return Step::Send(HALF_A_LINE.to_owned());
        }
        if state.faults.half_open {
            return Step::Wait(None);
        }
        let mut text = String::new();
        if self.initial && self.options.initial {
            match state.faults.streaming {
                Streaming::NoProgress => return self.fail(text, NO_PROGRESS),
                Streaming::BreaksOff => {
                    self.add_objects(&state, &mut text, 2);
                    return self.fail(text, "etcdserver: leader changed");
                }
                Streaming::Endless => {
                    let now = Instant::now();
                    if self.bookmark.is_some_and(|due| due > now) {
                        return Step::Wait(self.bookmark);
                    }
                    self.bookmark = Some(now + AGAIN);
                    self.add_objects(&state, &mut text, 1);
                    return Step::Send(text);
                }
                Streaming::Works | Streaming::Refused | Streaming::Unknown => {}
            }
        }
        if std::mem::take(&mut self.initial) {
            self.add_initial(&state, &mut text);
        }
        if !self.add_changes(&state, &mut text) {
            self.ending = Some(End::Proper);
            return Step::Send(text);
        }
        let now = Instant::now();
        // A watch from a future version gets nothing, not even a bookmark.
        let known = self.version <= state.objects.version();
        if known && self.bookmark.is_some_and(|due| due <= now) {
            add_line(&mut text, &self.bookmark(false));
            self.bookmark = Some(now + state.bookmark_interval);
        }
        if !text.is_empty() {
            return Step::Send(text);
        }
        if self.timeout.is_some_and(|end| end <= now) {
            return Step::End;
        }
        Step::Wait([self.bookmark.filter(|_| known), self.timeout].into_iter().flatten().min())
    }

    /// Ends the watch with an ERROR event.
    fn fail(&mut self, mut text: String, message: &str) -> Step {
        let refusal = Refusal::new(500, "InternalError", message);
        add_line(&mut text, &render_event("ERROR", status(&refusal)));
        self.ending = Some(End::Proper);
        Step::Send(text)
    }

    /// Adds all existing objects, or some of them.
    fn add_objects(&self, state: &State, text: &mut String, one_of: usize) {
        let (kind, now) = (self.target.resource.kind, state.objects.version());
        let objects = state.objects.list(kind, &self.options.selector, now).unwrap_or_default();
        for object in objects.iter().step_by(one_of) {
            add_line(text, &render_event("ADDED", object.text()));
        }
    }

    fn add_initial(&mut self, state: &State, text: &mut String) {
        self.version = state.objects.version();
        self.add_objects(state, text, 1);
        if self.options.initial && self.options.bookmarks && state.faults.streaming != Streaming::Unknown {
            add_line(text, &self.bookmark(true));
        }
    }

    /// Adds the events since the last ones, and injected lines in their places; false when events are lost.
    fn add_changes(&mut self, state: &State, text: &mut String) -> bool {
        let now = state.objects.version();
        let Some(changes) = state.objects.since(self.version, self.target.resource.kind) else {
            let refusal = Refusal::expired(self.version, now);
            add_line(text, &render_event("ERROR", status(&refusal)));
            return false;
        };
        let kind = self.target.resource.kind;
        let mut injected = state.injected[self.injected..].iter().filter(|i| i.kind == kind).peekable();
        for change in changes {
            while let Some(injected) = injected.next_if(|i| i.after < change.version) {
                add_line(text, &injected.line);
            }
            if let Some(event) = self.options.selector.event(change) {
                add_line(text, &event);
            }
        }
        for injected in injected {
            add_line(text, &injected.line);
        }
        self.injected = state.injected.len();
        self.version = self.version.max(now);
        true
    }

    fn bookmark(&self, end_of_list: bool) -> String {
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if end_of_list {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let resource = self.target.resource;
        let object = json!({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata});
        render_event("BOOKMARK", object)
    }
}

fn add_line(text: &mut String, line: &dyn std::fmt::Display) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watching(shared: &Arc<Shared>, query: &str) -> Watching {
        let target = Target::parse("/api/v1/services").unwrap();
        let options = Options::parse(query, &target).unwrap();
        Watching::new(shared, target, options)
    }

    fn shared() -> Arc<Shared> {
        let changed = tokio::sync::watch::Sender::new(0);
        let shared = Arc::new(Shared { state: std::sync::Mutex::default(), changed });
        shared.change(|state| state.objects.set_limit(3));
        shared
    }

    fn apply(shared: &Shared, kind: &str, name: &str) {
        let object = json!({"kind": kind, "metadata": {"name": name, "namespace": "d"}});
        shared.change(|state| state.objects.apply(object));
    }

    fn sent(step: Step) -> String {
        match step {
            Step::Send(text) => text,
            _ => String::new(),
        }
    }

    #[test]
    fn a_watch_that_keeps_up_outlives_its_history() {
        let shared = shared();
        let mut quiet = watching(&shared, "watch=true&resourceVersion=1");
        let mut late = watching(&shared, "watch=true&resourceVersion=1");
        for n in 0..20 {
            apply(&shared, "Node", &format!("n{n}"));
            assert!(matches!(quiet.step(), Step::Wait(None)), "nothing for it");
        }
        apply(&shared, "Service", "s");
        assert!(sent(quiet.step()).contains("ADDED"));
        let gone = sent(late.step());
        assert!(gone.contains("ERROR") && gone.contains("410") && gone.ends_with('\n'), "{gone}");
    }

    #[test]
    fn without_a_version_a_watch_starts_with_existing_objects() {
        let shared = shared();
        apply(&shared, "Service", "s");
        let mut plain = watching(&shared, "watch=true");
        assert_eq!(sent(plain.step()).matches("ADDED").count(), 1);
        assert!(matches!(plain.step(), Step::Wait(None)));
        let query =
            "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let text = sent(watching(&shared, query).step());
        assert!(text.contains("ADDED") && text.contains("k8s.io/initial-events-end"), "{text}");
        assert_eq!(shared.state().watches, 1, "closed ones are not counted");
    }
}
