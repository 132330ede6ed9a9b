//! What each kind of client sends, and how it tells the frames that it gets apart.

use clap::ValueEnum;

use super::frame;

/// The answer that a heartbeat waits for begins with this, and no other frame does.
const BEAT: &str = r#"[null,"1","#;

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// JSON, the whole list at every change.
    Full,
    /// JSON, a state and then differences.
    Diff,
    /// JSON, numbers alone.
    Count,
    /// JSON, nothing about who is there.
    None,
    /// Phoenix Channels 2.0.0.
    Phoenix,
    /// To the floor: what is said comes back.
    #[value(skip)]
    Echo,
    /// To the floor: what is said goes to all.
    #[value(skip)]
    Hub,
}

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
            Self::Count => "count",
            Self::None => "none",
            Self::Phoenix => "phoenix",
            Self::Echo => "echo",
            Self::Hub => "hub",
        }
    }

    /// Where to connect.
    pub fn path(self, room: &str, user: usize) -> String {
        match self {
            Self::Phoenix => format!("/socket/websocket?vsn=2.0.0&user=u{user}"),
            Self::Echo => "/echo".to_owned(),
            Self::Hub => format!("/ws/{room}"),
            _ => format!("/ws/{room}?user=u{user}&presence={}", self.name()),
        }
    }

    /// What to say to join the room, where connecting alone does not.
    pub fn join(self, room: &str) -> Option<Vec<u8>> {
        let join = || frame::text(&format!(r#"["1","1","{room}","phx_join",{{}}]"#));
        (self == Self::Phoenix).then(join)
    }

    /// What to say to leave the room and close the connection.
    pub fn leave(self, room: &str) -> Vec<u8> {
        let mut frames = Vec::new();
        if self == Self::Phoenix {
            frames = frame::text(&format!(r#"["1","2","{room}","phx_leave",{{}}]"#));
        }
        frames.extend(frame::close());
        frames
    }

    /// Whether somebody who joins is told who is there.
    pub fn is_told(self) -> bool {
        !matches!(self, Self::None | Self::Echo | Self::Hub)
    }

    /// Whether this is the state of the room, after which the client has joined.
    pub fn is_state(self, text: &[u8]) -> bool {
        let begin: &str = match self {
            Self::Full => r#"{"type":"presence","#,
            Self::Diff => r#"{"type":"presence_state","#,
            Self::Count => r#"{"type":"presence_count","#,
            Self::Phoenix => r#"["1",null,"#,
            Self::None | Self::Echo | Self::Hub => return false,
        };
        text.starts_with(begin.as_bytes())
    }

    /// A message to the room.
    pub fn message(self, room: &str) -> Vec<u8> {
        match self {
            Self::Phoenix => {
                frame::text(&format!(r#"["1","2","{room}","say",{{"text":"hello to all"}}]"#))
            }
            _ => frame::text(r#"{"type":"message","payload":{"text":"hello to all"}}"#),
        }
    }

    /// How a message from the room begins.
    pub fn message_begins(self, room: &str) -> String {
        match self {
            Self::Phoenix => format!(r#"[null,null,"{room}","say","#),
            _ => r#"{"type":"message","#.to_owned(),
        }
    }
}

/// A heartbeat of Phoenix, which is answered. (That of the JSON dialect is not.) An echo is an answer,
/// too.
pub fn heartbeat() -> Vec<u8> {
    frame::text(r#"[null,"1","phoenix","heartbeat",{}]"#)
}

pub fn is_answer(text: &[u8]) -> bool {
    text.starts_with(BEAT.as_bytes())
}
