use std::time::Duration;

use actix_presence::{
    Cause, Connection, Disconnect, Forwarded, Heard, IdleStep, IdleWatch, PresenceError, Publish,
    RoomName,
};
use actix_ws::{CloseCode, Closed, Message, MessageStream, ProtocolError, Session};

async fn chat(
    mut me: Connection,
    room: RoomName,
    mut session: Session,
    mut frames: MessageStream,
) -> Result<(), Closed> {
    let (outlet, mut heard) = me.outlet(256);
    if let Err(refused) = me.enter(me.join(room.clone(), outlet)).await {
        return session.close(Some(refused.into())).await;
    }
    let mut idle = IdleWatch::new(Duration::from_secs(25), Duration::from_secs(60));
    let end = loop {
        tokio::select! {
            heard = heard.recv() => match heard {
                Some(Heard::Frame(frame)) if frame.kind == Forwarded::Message => {
                    session.text(frame.payload).await?;
                }
                Some(Heard::Frame(_)) => {}
                Some(Heard::Close(order)) => break Some(order.into()),
                None => break Some(PresenceError::Ended.into()),
            },
            step = idle.next() => match step {
                IdleStep::Ping => session.ping(b"").await?,
                IdleStep::Close => {
                    me.leave(Cause::Expired);
                    break Some(Disconnect { code: 4000, cause: Cause::Expired }.into());
                }
            },
            frame = frames.recv() => {
                idle.heard();
                match frame {
                    Some(Ok(Message::Text(text))) => {
                        let Some(text) = me.text(&text) else { continue };
                        let message = Publish::new(room.clone(), text.to_owned());
                        if let Err(refused) = me.publish(message).await {
                            session.text(format!("* {refused}")).await?;
                        }
                    }
                    Some(Ok(Message::Ping(bytes))) => {
                        me.touch();
                        session.pong(&bytes).await?;
                    }
                    Some(Ok(Message::Pong(_))) => me.touch(),
                    Some(Ok(Message::Close(reason))) => {
                        me.closed_by_client(reason.as_ref());
                        break reason;
                    }
                    Some(Ok(_)) => break Some((CloseCode::Unsupported, "only text").into()),
                    Some(Err(ProtocolError::Overflow)) => {
                        break Some((CloseCode::Size, "too long").into());
                    }
                    Some(Err(_)) | None => return Ok(()), // the connection has broken
                }
            }
        }
    };
    session.close(end).await
}
