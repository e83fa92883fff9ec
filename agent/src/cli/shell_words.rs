// SPDX-License-Identifier: Apache-2.0
//! One simple command in the language of a shell: words, quotes, variables and redirections of output. Everything else
//! is refused, because a part that is not understood could change what is meant.

use std::path::PathBuf;

use crate::kernel::host::log_output::OutputSink;

/// A command: its words, and where its output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShellCommand {
    pub words: Vec<String>,
    pub stdout: OutputSink,
    pub stderr: OutputSink,
}

/// The characters of a script, and the word that is being read.
struct Reader<'a, V> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    variable: V,
    word: Option<String>,
    /// No part of the word was quoted or is a value: only then a number is a stream of a redirection.
    literal: bool,
}

/// Reads a command. The error completes the sentence "it understands no …".
pub(super) fn parse_command(
    script: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<ShellCommand, String> {
    let mut command =
        ShellCommand { words: Vec::new(), stdout: OutputSink::Stdout, stderr: OutputSink::Stderr };
    let mut reader = Reader { rest: script.trim().chars().peekable(), variable, word: None, literal: true };
    while let Some(next) = reader.rest.next() {
        match next {
            ' ' | '\t' => command.words.extend(reader.take_word()),
            '>' => reader.redirection(&mut command)?,
            '#' if reader.word.is_none() => return Err("comment".to_owned()),
            '=' if command.words.is_empty() && reader.literal => return Err("assignment".to_owned()),
            other => reader.part(other)?,
        }
    }
    command.words.extend(reader.take_word());
    Ok(command)
}

impl<V: Fn(&str) -> Option<String>> Reader<'_, V> {
    fn take_word(&mut self) -> Option<String> {
        self.literal = true;
        self.word.take()
    }

    fn word(&mut self) -> &mut String {
        self.word.get_or_insert_default()
    }

    /// A part of a word that begins with `first`.
    fn part(&mut self, first: char) -> Result<(), String> {
        match first {
            '\'' => self.single_quotes(),
            '"' => self.double_quotes(),
            '$' => self.expand(false),
            '\\' => match self.rest.next() {
                // A line that continues.
                Some('\n') => Ok(()),
                Some(escaped) => {
                    self.literal = false;
                    self.word().push(escaped);
                    Ok(())
                }
                None => Err("backslash at its end".to_owned()),
            },
            '\n' | ';' => Err("second command".to_owned()),
            '&' => Err("background process or && list".to_owned()),
            '|' => Err("pipe".to_owned()),
            '<' => Err("input redirection".to_owned()),
            '`' => Err("command substitution".to_owned()),
            '(' | ')' | '{' | '}' => Err("group of commands".to_owned()),
            '*' | '?' | '[' | '~' => Err(format!("unquoted {first}, a pattern of files")),
            plain => {
                self.word().push(plain);
                Ok(())
            }
        }
    }

    fn single_quotes(&mut self) -> Result<(), String> {
        self.literal = false;
        self.word();
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(inside) => self.word().push(inside),
                None => return Err("quote without its end".to_owned()),
            }
        }
    }

    fn double_quotes(&mut self) -> Result<(), String> {
        self.literal = false;
        self.word();
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => self.expand(true)?,
                Some('`') => return Err("command substitution".to_owned()),
                Some('\\') => match self.rest.next() {
                    Some('\n') => {}
                    Some(escaped @ ('"' | '\\' | '$' | '`')) => self.word().push(escaped),
                    Some(other) => self.word().extend(['\\', other]),
                    None => return Err("quote without its end".to_owned()),
                },
                Some(inside) => self.word().push(inside),
                None => return Err("quote without its end".to_owned()),
            }
        }
    }

    /// `$NAME` and `${NAME}`. Without quotes, a shell splits the value and replaces patterns in it by names of files, and no
    /// value is no word: such values are refused.
    fn expand(&mut self, quoted: bool) -> Result<(), String> {
        let braces = self.rest.next_if_eq(&'{').is_some();
        let mut name = String::new();
        while let Some(letter) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(letter);
        }
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !is_name || braces && self.rest.next_if_eq(&'}').is_none() {
            return Err("expansion but $NAME and ${NAME}".to_owned());
        }
        let value = (self.variable)(&name).unwrap_or_default();
        if value.is_empty() {
            return Err(format!("variable without a value, ${name}"));
        }
        if !quoted && value.contains([' ', '\t', '\n']) {
            return Err(format!(
                "unquoted variable with white space in its value, ${name}: write \"${name}\" if it is one argument, \
                 and several arguments without a variable"
            ));
        }
        if !quoted && value.contains(['*', '?', '[']) {
            return Err(format!(
                "unquoted variable with a pattern of files in its value, ${name}: write \"${name}\""
            ));
        }
        self.literal = false;
        self.word().push_str(&value);
        Ok(())
    }

    /// Whether the word is a stream if a redirection follows it.
    fn is_number(&self) -> bool {
        let is_digits = |word: &String| word.bytes().all(|byte| byte.is_ascii_digit());
        self.literal && self.word.as_ref().is_some_and(is_digits)
    }

    /// `[1|2]>FILE`, `[1|2]>>FILE`, `1>&2` and `2>&1`, in their order, after the first `>`.
    fn redirection(&mut self, command: &mut ShellCommand) -> Result<(), String> {
        let stderr = match self.is_number().then(|| self.take_word()).flatten().as_deref() {
            None => {
                command.words.extend(self.take_word());
                false
            }
            Some("1") => false,
            Some("2") => true,
            Some(other) => return Err(format!("redirection of stream {other}")),
        };
        let append = self.rest.next_if_eq(&'>').is_some();
        if self.rest.next_if_eq(&'|').is_some() {
            return Err("redirection >|".to_owned());
        }
        let copied = !append && self.rest.next_if_eq(&'&').is_some();
        let path = self.path()?;
        let sink = match (copied, path.as_str()) {
            (true, "1") => command.stdout.clone(),
            (true, "2") => command.stderr.clone(),
            (true, other) => return Err(format!("redirection to stream {other}")),
            (false, _) => OutputSink::File { path: PathBuf::from(path), append },
        };
        *(if stderr { &mut command.stderr } else { &mut command.stdout }) = sink;
        Ok(())
    }

    /// The word after a redirection.
    fn path(&mut self) -> Result<String, String> {
        while self.rest.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        while let Some(next) = self.rest.next_if(|c| !matches!(c, ' ' | '\t' | '>')) {
            self.part(next)?;
        }
        if self.is_number() && self.rest.peek() == Some(&'>') {
            return Err("redirection directly after another".to_owned());
        }
        self.take_word()
            .filter(|path| !path.is_empty())
            .ok_or_else(|| "redirection without a file".to_owned())
    }
}
