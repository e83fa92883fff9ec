// SPDX-License-Identifier: Apache-2.0
//! The terminal of `kube-ipvs top`: its screen, its keyboard, and the signals. It is as before when the program ends,
//! whether by a key, a signal or a panic.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Stdout};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd as _;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use ratatui_core::layout::Rect;
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;
use ratatui_crossterm::crossterm::{cursor, execute, terminal};

use super::watch_traffic::ReadOutcome;
use crate::inspect::top::draw_top::draw;
use crate::inspect::top::keyboard::{KeyDecoder, TopKey};
use crate::inspect::top::top_state::Top;

/// How long the rest of a key may take after an escape, in milliseconds.
const REST_OF_KEY: u8 = 50;
/// Bytes of one draw: fewer and larger packets over ssh and `kubectl exec`.
const OUTPUT: usize = 16 * 1024;

/// What the threads tell the one that draws.
pub(super) enum TopMessage {
    /// A reading that began at this time.
    Read(Instant, ReadOutcome),
    Key(TopKey),
    Resized,
    /// A signal, or the terminal is gone.
    Stop,
}

/// The alternate screen in raw mode, until it is dropped.
pub(super) struct TopTerminal {
    /// Never dropped: its drop panics when the terminal is gone.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<BufWriter<Stdout>>>>,
    has_color: bool,
}

impl TopTerminal {
    /// # Errors
    /// Input or output is no terminal.
    pub(super) fn open(has_color: bool) -> anyhow::Result<Self> {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            usual(panic);
        }));
        terminal::enable_raw_mode()?;
        let mut output = BufWriter::with_capacity(OUTPUT, io::stdout());
        let opened = execute!(output, terminal::EnterAlternateScreen, cursor::Hide);
        match opened.and_then(|()| Terminal::new(CrosstermBackend::new(output))) {
            Ok(terminal) => Ok(Self { terminal: ManuallyDrop::new(terminal), has_color }),
            Err(error) => {
                restore();
                Err(error.into())
            }
        }
    }

    /// # Errors
    /// The terminal is gone.
    pub(super) fn draw(&mut self, top: &mut Top) -> io::Result<()> {
        let has_color = self.has_color;
        self.terminal.draw(|frame| draw(top, has_color, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    /// Draws everything again, after another program wrote to the terminal.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn repaint(&mut self, top: &mut Top) -> io::Result<()> {
        // Not `clear`, which asks the terminal for its cursor and would wait for our keyboard.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::new(0, 0, size.width, size.height))?;
        self.draw(top)
    }
}

impl Drop for TopTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal as it was.
fn restore() {
    // Nothing is left to do about a terminal that is gone.
    let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

/// Sends signals. All threads that are started later leave them to this one.
pub(super) fn watch_signals(sender: Sender<TopMessage>) -> anyhow::Result<()> {
    let signals: SigSet =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect();
    signals.thread_block().context("cannot handle signals")?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        loop {
            let message = match signals.wait() {
                Ok(Signal::SIGWINCH) => TopMessage::Resized,
                _ => TopMessage::Stop,
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Sends keys, then the end of the input.
pub(super) fn watch_keyboard(sender: Sender<TopMessage>) -> anyhow::Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().context("cannot read the keyboard")?);
    thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        let _ = send_keys(input, &sender);
        let _ = sender.send(TopMessage::Stop);
    })?;
    Ok(())
}

fn send_keys(mut input: File, sender: &Sender<TopMessage>) -> anyhow::Result<()> {
    let (mut decoder, mut bytes) = (KeyDecoder::default(), [0; 256]);
    loop {
        let timeout = if decoder.is_waiting() { PollTimeout::from(REST_OF_KEY) } else { PollTimeout::NONE };
        let ready = poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], timeout)?;
        let keys = match ready {
            0 => decoder.end().into_iter().collect(),
            _ => match input.read(&mut bytes)? {
                0 => return Ok(()),
                length => decoder.add(bytes.get(..length).unwrap_or_default()),
            },
        };
        for key in keys {
            sender.send(TopMessage::Key(key)).map_err(|_| anyhow::anyhow!("nobody takes keys"))?;
        }
    }
}
