//! Apps in processes of their own: a test program starts itself again, and its test `signals::app` runs
//! the app.

use std::{
    fs, io,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::HeaderValue,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// Less than the 30 seconds for which actix-server waits for sockets that nobody closes.
pub const SOON: Duration = Duration::from_secs(15);

/// Names the app to the process.
pub const APP: &str = "PRESENCE_TEST_APP";

pub type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a WebSocket, and waits for its first frame, a text.
pub async fn connect(port: u16, path: &str, cookie: &str) -> Result<(Client, String), Error> {
    let mut request = format!("ws://127.0.0.1:{port}{path}").into_client_request()?;
    request.headers_mut().insert("cookie", HeaderValue::from_str(cookie)?);
    let (mut client, _) =
        timeout(SOON, connect_async(request)).await.expect("it answers in time")?;
    let first = next(&mut client).await;
    Ok((client, first))
}

/// The next text.
pub async fn next(client: &mut Client) -> String {
    loop {
        let frame = timeout(SOON, client.next()).await.expect("a frame in time");
        match frame.expect("a frame").unwrap() {
            Message::Text(text) => return text.to_string(),
            Message::Close(frame) => panic!("{frame:?}"),
            _ => {}
        }
    }
}

/// Closes in order; the server has to answer with the same code.
pub async fn close(mut client: Client) {
    let bye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    client.send(Message::Close(Some(bye))).await.unwrap();
    assert_eq!(closed(&mut client).await, Some(1000));
}

/// The code with which the server closes; none if the connection just breaks off, which browsers call 1006.
pub async fn closed(client: &mut Client) -> Option<u16> {
    loop {
        match timeout(SOON, client.next()).await.expect("it is closed in time")? {
            Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// An app in a process and a directory of its own, killed when it is dropped.
pub struct Process {
    child: Child,
    pub directory: tempfile::TempDir,
}

impl Process {
    pub fn start(app: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Self::command(app).current_dir(&directory).spawn().unwrap();
        Self { child, directory }
    }

    /// The command that runs an app.
    pub fn command(app: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["signals::app", "--exact", "--ignored", "--nocapture"]).env(APP, app);
        command
    }

    /// The port on which it listens, as soon as it does.
    pub async fn port(&self) -> u16 {
        let listening = async {
            loop {
                if let Ok(Some(port)) = listening_port(self.child.id()) {
                    return port;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, listening).await.expect("it listens in time")
    }

    pub fn send(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    pub async fn end(&mut self) -> ExitStatus {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, ended).await.expect("it ends in time")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The TCP port on which a process listens, as Linux tells it.
fn listening_port(process: u32) -> io::Result<Option<u16>> {
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/tcp"))?;
    Ok(table.lines().skip(1).find_map(|line| {
        // Number, own address, other address, state (0A: it listens), and the inode as the tenth.
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_ours = columns.get(3) == Some(&"0A")
            && sockets.iter().any(|it| columns.get(9) == Some(&&**it));
        let (_, port) = columns.get(1)?.split_once(':')?;
        is_ours.then(|| u16::from_str_radix(port, 16).ok())?
    }))
}
