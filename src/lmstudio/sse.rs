//! PURE: server-sent events, as the HTML standard defines them; comments are kept, because some engines tell their
//! progress in them.

/// A line longer than this is no line of an event stream, in bytes.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// One thing that a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An event with data.
    Event {
        /// The last `event:` line before it; empty where there is none.
        name: String,
        /// The `data:` lines, joined with line feeds.
        data: String,
    },
    /// A line that starts with a colon, without it.
    Comment(String),
}

/// Takes a stream apart, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// A line feed right after a carriage return belongs to it.
    after_return: bool,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// What this piece completes. Fails where a line has no end.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, &'static str> {
        let mut frames = Vec::new();
        for byte in bytes {
            let ends = match byte {
                b'\n' => !self.after_return,
                b'\r' => true,
                _ => false,
            };
            self.after_return = *byte == b'\r';
            if ends {
                frames.extend(self.end_line());
            } else if *byte != b'\n' {
                self.line.push(*byte);
            }
            if self.line.len() > MAX_LINE {
                return Err("a line of its event stream does not end");
            }
        }
        Ok(frames)
    }

    fn end_line(&mut self) -> Option<Frame> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| Frame::Event { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(Frame::Comment(value.to_owned())),
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stream: &str) -> Vec<Frame> {
        Parser::default().feed(stream.as_bytes()).unwrap()
    }

    fn event(name: &str, data: &str) -> Frame {
        Frame::Event {
            name: name.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn events_have_a_name_and_data() {
        let stream = "event: chat.start\ndata: {\"type\":\"chat.start\"}\n\ndata:plain\n\n";
        assert_eq!(
            all(stream),
            [
                event("chat.start", "{\"type\":\"chat.start\"}"),
                event("", "plain")
            ]
        );
    }

    #[test]
    fn comments_come_at_once_and_do_not_end_an_event() {
        let stream = ": keepalive 512/2019\n\ndata: a\n:x\ndata: b\n\n";
        let comment = |text: &str| Frame::Comment(text.to_owned());
        assert_eq!(
            all(stream),
            [
                comment("keepalive 512/2019"),
                comment("x"),
                event("", "a\nb")
            ]
        );
    }

    #[test]
    fn every_line_end_and_every_cut_gives_the_same() {
        let stream = "\u{feff}event: ü\ndata: one\ndata:  two\n\n: c\nid: 7\nretry\n\ndata\n\n";
        let expected = all(stream);
        assert_eq!(
            expected,
            [
                event("ü", "one\n two"),
                Frame::Comment("c".to_owned()),
                event("", "")
            ]
        );
        for text in [
            stream.to_owned(),
            stream.replace('\n', "\r\n"),
            stream.replace('\n', "\r"),
        ] {
            for cut in 1..text.len() {
                let mut parser = Parser::default();
                let (head, tail) = text.as_bytes().split_at(cut);
                let mut found = parser.feed(head).unwrap();
                found.extend(parser.feed(tail).unwrap());
                assert_eq!(found, expected, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_was_not_ended_is_not_an_event() {
        assert_eq!(all("event: x\n\n"), []);
        assert_eq!(all("data: cut off"), []);
        assert_eq!(all("data: cut off\n"), []);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        assert!(Parser::default().feed(&vec![b'x'; MAX_LINE + 1]).is_err());
    }
}
