//! The first packets of a connection: encryption (refused), cancel requests, and who wants which database.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use pgwire::messages::{
    PgWireBackendMessage as Message,
    startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey},
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    backend::Writer,
    cancel::{Seat, Sessions},
    connection::{Connection, Stop, say_fatal},
    frontend::{PROTOCOL_VIOLATION, Reader},
};
use crate::{
    Engine, Error, Session, SqlState,
    server::{DATABASE, USER},
};

/// How long a client may take until its session begins.
const STARTUP_MAX: Duration = Duration::from_secs(10);
/// Codes in place of a version.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// Newest minor version of protocol 3.
const MINOR_MAX: u32 = 2;
/// SQLSTATE of a role that does not exist.
const INVALID_AUTHORIZATION: SqlState = SqlState("28000");

/// What a client says at first.
#[derive(Debug, PartialEq, Eq)]
struct Startup {
    /// Minor version of protocol 3.
    minor: u32,
    /// Names and values.
    parameters: Vec<(String, String)>,
}

/// Takes a connection to its session; `None` when it was refused, was a cancel request, or is gone.
pub(super) async fn begin(
    stream: TcpStream,
    engine: Arc<Engine>,
    sessions: &Arc<Sessions>,
) -> Option<Connection> {
    let (reader, writer) = stream.into_split();
    let (mut reader, mut writer) = (Reader::new(reader), Writer::new(writer));
    let opening = open(&mut reader, &mut writer, (engine, sessions));
    let stop = match timeout(STARTUP_MAX, opening).await {
        Ok(Ok(Some((session, seat)))) => {
            return Some(Connection::new(reader, writer, session, seat));
        }
        Ok(Ok(None)) => return None,
        Ok(Err(stop)) => stop,
        Err(_) => Stop::Fatal(Error::new(PROTOCOL_VIOLATION, "canceling startup due to timeout")),
    };
    if let Stop::Fatal(error) = stop {
        let _ = timeout(STARTUP_MAX, say_fatal(&mut writer, &error)).await;
    }
    None
}

async fn open(
    reader: &mut Reader,
    writer: &mut Writer,
    (engine, sessions): (Arc<Engine>, &Arc<Sessions>),
) -> Result<Option<(Session, Seat)>, Stop> {
    let Some(startup) = receive(reader, writer, sessions).await? else { return Ok(None) };
    let user = startup.check().map_err(Stop::Fatal)?;
    let seat = sessions.enter(startup.minor() < MINOR_MAX).ok_or_else(|| {
        Stop::Fatal(Error::new(SqlState("53300"), "sorry, too many clients already"))
    })?;
    let mut session = Session::new(engine, user);
    startup.apply(&mut session).await.map_err(Stop::Fatal)?;
    if let Some(message) = startup.negotiation() {
        writer.put(&message)?;
    }
    writer.put(&Message::Authentication(Authentication::Ok))?;
    let key = match seat.key().try_into() {
        Ok(short) => SecretKey::I32(i32::from_be_bytes(short)),
        Err(_) => SecretKey::Bytes(Bytes::copy_from_slice(seat.key())),
    };
    writer.put(&Message::BackendKeyData(BackendKeyData::new(seat.pid(), key)))?;
    Ok(Some((session, seat)))
}

/// Receives packets up to the one that says who the client is; `None` when it only wanted to cancel.
async fn receive(
    reader: &mut Reader,
    writer: &mut Writer,
    sessions: &Sessions,
) -> Result<Option<Startup>, Stop> {
    let (mut ssl, mut gss) = (false, false);
    loop {
        let mut packet = reader.startup_packet().await?;
        let code = packet.try_get_u32().unwrap_or_default();
        match code {
            SSL_REQUEST if !ssl && packet.is_empty() => ssl = true,
            GSS_REQUEST if !gss && packet.is_empty() => gss = true,
            CANCEL_REQUEST => {
                if let Ok(pid) = packet.try_get_i32() {
                    sessions.cancel(pid, &packet);
                }
                return Ok(None);
            }
            version => return Startup::decode(version, &packet).map(Some).map_err(Stop::Fatal),
        }
        if reader.pending() {
            let message = "received data before the answer to an encryption request";
            return Err(Stop::Fatal(Error::new(PROTOCOL_VIOLATION, message)));
        }
        // Neither kind of encryption is offered.
        writer.buffer().push(b'N');
        writer.flush().await?;
    }
}

impl Startup {
    fn decode(version: u32, packet: &[u8]) -> Result<Self, Error> {
        let (major, minor) = (version >> 16, version & 0xffff);
        if major != 3 {
            let message = format!(
                "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{MINOR_MAX}"
            );
            return Err(Error::new(SqlState("0A000"), message));
        }
        let layout = || Error::new(PROTOCOL_VIOLATION, "invalid startup packet layout");
        let Some((0, packet)) = packet.split_last() else { return Err(layout()) };
        let Some((0, packet)) = packet.split_last() else {
            // No parameters at all.
            return if packet.is_empty() {
                Ok(Self { minor, parameters: Vec::new() })
            } else {
                Err(layout())
            };
        };
        let texts: Vec<&[u8]> = packet.split(|byte| *byte == 0).collect();
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| {
                let message = "invalid byte sequence for encoding \"UTF8\" in startup packet";
                Error::new(SqlState("22021"), message)
            })
        };
        let pairs = texts.chunks(2).map(|pair| match pair {
            [name, value] if !name.is_empty() => Ok((text(name)?, text(value)?)),
            _ => Err(layout()),
        });
        Ok(Self { minor, parameters: pairs.collect::<Result<_, _>>()? })
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.parameters.iter().filter(|(known, _)| known == name);
        values.next_back().map(|(_, value)| value.as_str())
    }

    /// The minor version to speak: the newest that both know. There never was a 3.1.
    fn minor(&self) -> u32 {
        if self.minor >= MINOR_MAX { MINOR_MAX } else { 0 }
    }

    /// Tells a client that asked for a version or option that is not there what it gets.
    fn negotiation(&self) -> Option<Message> {
        let options: Vec<String> = self
            .parameters
            .iter()
            .filter(|(name, _)| name.starts_with("_pq_."))
            .map(|(name, _)| name.clone())
            .collect();
        if self.minor == self.minor() && options.is_empty() {
            return None;
        }
        let version = 3 << 16 | self.minor() as i32;
        let message = NegotiateProtocolVersion::new(version, options);
        Some(Message::NegotiateProtocolVersion(message))
    }

    /// Refuses users and databases that do not exist; gives the user.
    fn check(&self) -> Result<&str, Error> {
        let user = self.get("user").filter(|user| !user.is_empty()).ok_or_else(|| {
            let message = "no PostgreSQL user name specified in startup packet";
            Error::new(INVALID_AUTHORIZATION, message)
        })?;
        if user != USER {
            let message = format!("role \"{user}\" does not exist");
            return Err(Error::new(INVALID_AUTHORIZATION, message));
        }
        let database = self.get("database").filter(|name| !name.is_empty()).unwrap_or(user);
        if database != DATABASE {
            let message = format!("database \"{database}\" does not exist");
            return Err(Error::new(SqlState("3D000"), message));
        }
        let replication = self.get("replication").unwrap_or("false");
        if !["false", "off", "no", "0"].contains(&replication) {
            return Err(Error::new(SqlState("0A000"), "replication is not supported"));
        }
        Ok(user)
    }

    /// Gives the session the settings that came with the connection.
    async fn apply(&self, session: &mut Session) -> Result<(), Error> {
        let options = self.get("options").map(options).transpose()?.unwrap_or_default();
        let own = self.parameters.iter().filter(|(name, _)| {
            !matches!(name.as_str(), "user" | "database" | "options" | "replication")
                && !name.starts_with("_pq_.")
        });
        for (name, value) in own.chain(&options) {
            set(session, name, value).await?;
        }
        Ok(())
    }
}

/// Sets one setting.
async fn set(session: &mut Session, name: &str, value: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        let message = format!("unrecognized configuration parameter \"{name}\"");
        return Err(Error::new(SqlState("42704"), message));
    }
    // Encodings are known by their letters and digits: some clients send quotes, too.
    let value: String = match name.eq_ignore_ascii_case("client_encoding") {
        true => value.chars().filter(|letter| letter.is_ascii_alphanumeric()).collect(),
        false => value.replace('\'', "''"),
    };
    let sql = format!("SET {name} TO '{value}'");
    let statement = session.prepare(&sql, &[]).await?;
    session.execute(&statement, Vec::new()).await?;
    Ok(())
}

/// The settings in the text `-c name=value --name=value`; a backslash quotes the next character.
fn options(text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let quoted = if character == '\\' { characters.next() } else { None };
        if quoted.is_none() && character.is_ascii_whitespace() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(quoted.unwrap_or(character));
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => Some(setting.to_owned()),
            (_, Some("")) => words.next(),
            (_, setting) => setting.map(str::to_owned),
        };
        let pair = setting.as_deref().and_then(|setting| setting.split_once('='));
        let (name, value) = pair.ok_or_else(|| {
            let message = format!("invalid command-line argument for server process: {word}");
            Error::new(SqlState("42601"), message)
        })?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(text: &[u8]) -> Result<Startup, Error> {
        Startup::decode(3 << 16, text)
    }

    #[test]
    fn a_startup_is_pairs_and_an_end() {
        let good = startup(b"user\0hypertide\0database\0hypertide\0\0").unwrap();
        assert_eq!(good.check(), Ok("hypertide"));
        let alone = startup(b"user\0hypertide\0\0").unwrap();
        assert_eq!(alone.check(), Ok("hypertide"));
        let none = startup(b"\0").unwrap();
        assert_eq!(none.check().unwrap_err().state, INVALID_AUTHORIZATION);
        for bad in [&b""[..], b"user", b"user\0", b"user\0\0", b"user\0a\0b\0\0", b"\0\0\0"] {
            if let Ok(startup) = startup(bad) {
                assert!(startup.check().is_err(), "{bad:?}");
            }
        }
        assert_eq!(startup(b"user\0\xff\0\0").unwrap_err().state, SqlState("22021"));
        assert_eq!(Startup::decode(2 << 16, b"\0").unwrap_err().state, SqlState("0A000"));
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let error = startup(b"user\0eve\0\0").unwrap().check().unwrap_err();
        assert_eq!(
            (error.state.0, error.message.as_str()),
            ("28000", "role \"eve\" does not exist")
        );
        let error = startup(b"user\0hypertide\0database\0x\0\0").unwrap().check().unwrap_err();
        assert_eq!(
            (error.state.0, error.message.as_str()),
            ("3D000", "database \"x\" does not exist")
        );
    }

    #[test]
    fn versions_are_negotiated_down() {
        let asks = |minor| Startup { minor, parameters: Vec::new() };
        assert_eq!((asks(0).minor(), asks(1).minor(), asks(2).minor()), (0, 0, 2));
        assert_eq!(asks(9999).minor(), 2);
        assert!(asks(0).negotiation().is_none());
        assert!(asks(2).negotiation().is_none());
        assert!(asks(9999).negotiation().is_some());
    }

    #[test]
    fn options_are_settings() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let found = options("-c a=1 --b-c=x\\ y -cd=2").unwrap();
        assert_eq!(found, [pair("a", "1"), pair("b_c", "x y"), pair("d", "2")]);
        assert!(options("-c").is_err());
        assert!(options("-x").is_err());
        assert_eq!(options(" ").unwrap(), []);
    }
}
