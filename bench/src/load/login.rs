//! Logging in and making chats, before anything is measured: plain blocking sockets, many at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use whimbrel_wire::{
    Builder, Code, CreateChatFields, Decoder, HelloFields, SendFields, ServerFrame, VERSION, fb, limits,
};

use crate::connect::connect;
use crate::load::users::PairUsers;
use crate::token::{DEVICE, Minter};

/// Requests that wait for their answers at a time: the server is not to be flooded before it is measured.
const WAVE: usize = 256;

/// An answer that does not come within this time will not come.
const ANSWER: Duration = Duration::from_secs(20);

/// A refusal that may be asked again is, for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that is logged in.
pub(crate) struct Joined {
    stream: TcpStream,
    decoder: Decoder,
    /// What is already acknowledged.
    pub(crate) floor: u64,
    /// Where the inbox ended at the login.
    pub(crate) head: u64,
    /// The last delivery that came.
    pub(crate) inbox_seq: u64,
}

/// A chat of a pair, as its sender was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chat {
    pub(crate) id: u128,
    /// The last `client_seq` that the sender's device used there, of an earlier run.
    pub(crate) last_client_seq: u64,
}

impl Joined {
    /// Its socket, and where in the stream of frames it stands.
    pub(crate) fn into_parts(self) -> (OwnedFd, Decoder) {
        (OwnedFd::from(self.stream), self.decoder)
    }

    fn begin(address: SocketAddr, token: &str) -> anyhow::Result<Joined> {
        let stream = TcpStream::from(connect(address)?);
        stream.set_read_timeout(Some(ANSWER)).context("set a read timeout")?;
        let mut joined = Joined { stream, decoder: Decoder::default(), floor: 0, head: 0, inbox_seq: 0 };
        joined.stream.write_all(&hello(token, 0)).context("send Hello")?;
        Ok(joined)
    }

    fn welcomed(&mut self) -> anyhow::Result<()> {
        let (floor, head) = self.answer(|frame| {
            Ok(match frame {
                ServerFrame::Welcome(welcome) => Some((welcome.floor(), welcome.head())),
                ServerFrame::Refused(refused) => bail!("login refused: {}", reason(refused.code(), refused.detail())),
                _ => None,
            })
        })?;
        if head < floor {
            bail!("the server's head {head} is below its floor {floor}");
        }
        self.floor = floor;
        self.head = head;
        // A delivery may have come in the same bytes.
        self.inbox_seq = self.inbox_seq.max(floor);
        Ok(())
    }

    fn ask_for_chat(&mut self, users: &PairUsers) -> anyhow::Result<()> {
        let ask = CreateChatFields {
            correlation: 2,
            kind: fb::ChatKind::Direct,
            nonce: 0,
            members: &[&users.receiver],
            title: "",
        };
        let mut out = Vec::new();
        Builder::default().create_chat(&mut out, &ask);
        self.stream.write_all(&out).context("send CreateChat")
    }

    /// The chat, or how long to wait before asking again.
    fn chat(&mut self) -> anyhow::Result<Result<Chat, Duration>> {
        self.answer(|frame| {
            Ok(match frame {
                ServerFrame::ChatInfo(info) => {
                    let id = whimbrel_wire::chat_id(info.chat());
                    Some(Ok(Chat { id, last_client_seq: info.last_client_seq() }))
                }
                ServerFrame::Error(error) if error.retriable() && !error.closes() => {
                    Some(Err(Duration::from_millis(u64::from(error.retry_after_ms().max(50)))))
                }
                ServerFrame::Error(error) => bail!("no chat: {}", reason(error.code(), error.detail())),
                _ => None,
            })
        })
    }

    /// Sends messages of a chat, so many that all may be in flight, until each is stored: those with the numbers from
    /// `first` on, above [`Chat::last_client_seq`]. What is refused for the moment is sent again after the retry time.
    pub(crate) fn store(&mut self, chat: &Chat, first: u64, payloads: &[Vec<u8>]) -> anyhow::Result<()> {
        let from = chat.last_client_seq + first;
        let mut stored = 0;
        let begun = Instant::now();
        while stored < payloads.len() {
            let mut out = Vec::new();
            for (client_seq, payload) in (from..).zip(payloads).skip(stored) {
                let fields =
                    SendFields { correlation: client_seq + 2, chat: chat.id, client_seq, prev: client_seq - 1 };
                Builder::default().send(&mut out, &fields, payload);
            }
            self.stream.write_all(&out).context("send messages")?;
            let (mut unanswered, mut pause) = (payloads.len() - stored, Duration::ZERO);
            self.answer(|frame| {
                match frame {
                    ServerFrame::Sent(sent) if sent.durability() == fb::Durability::None => {
                        bail!("a send was acknowledged before it was durable")
                    }
                    // Sends of a chat are stored in order.
                    ServerFrame::Sent(sent) => stored = stored.max((sent.client_seq() + 1 - from) as usize),
                    ServerFrame::Error(error) if error.retriable() && !error.closes() => {
                        pause = pause.max(Duration::from_millis(u64::from(error.retry_after_ms().max(50))));
                    }
                    ServerFrame::Error(error) => bail!("a send was refused: {}", reason(error.code(), error.detail())),
                    _ => return Ok(None),
                }
                unanswered -= 1;
                Ok((unanswered == 0).then_some(()))
            })?;
            if begun.elapsed() > PATIENCE {
                bail!("the server still refuses messages after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// Reads until `pick` finds what it looks for.
    fn answer<T>(&mut self, mut pick: impl FnMut(&ServerFrame<'_>) -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let mut chunk = [0; 4096];
        let mut found = None;
        while found.is_none() {
            let bytes = self.stream.read(&mut chunk).context("wait for an answer of the server")?;
            if bytes == 0 {
                bail!("the server closed a connection");
            }
            let mut input = &chunk[..bytes];
            loop {
                let mut rest = input;
                let Some(frame) = self.decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { break };
                input = &input[input.len() - rest.len()..];
                let frame = ServerFrame::parse(&frame)?;
                if let ServerFrame::Deliver(deliver, _) = &frame {
                    self.inbox_seq = deliver.inbox_seq();
                }
                found = found.or(pick(&frame)?);
            }
        }
        found.context("the loop above ends when it is found")
    }
}

/// The frame of a login of a device that has everything up to `floor`.
pub(crate) fn hello(token: &str, floor: u64) -> Vec<u8> {
    let hello = HelloFields {
        correlation: 1,
        version_min: VERSION,
        version_max: VERSION,
        token,
        device: DEVICE,
        floor,
        agent: "whimbrel-bench",
        ..HelloFields::default()
    };
    let mut out = Vec::new();
    Builder::default().hello(&mut out, &hello);
    out
}

/// Why the server refused, in words.
pub(crate) fn reason(code: u16, detail: Option<&str>) -> String {
    let text = Code::from_u16(code).map_or("a code that this build does not know", Code::text);
    format!("{code} {text} {}", detail.unwrap_or(""))
}

/// Logs all of these users in.
pub(crate) fn log_in(address: SocketAddr, minter: &Minter, users: &[String]) -> anyhow::Result<Vec<Joined>> {
    let mut all = Vec::with_capacity(users.len());
    for wave in users.chunks(WAVE) {
        let from = all.len();
        for user in wave {
            all.push(Joined::begin(address, &minter.mint(user)?).with_context(|| format!("log in {user}"))?);
        }
        for (joined, user) in all[from..].iter_mut().zip(wave) {
            joined.welcomed().with_context(|| format!("log in {user}"))?;
        }
    }
    Ok(all)
}

/// Has the sender of each pair make their chat; `senders` are logged in, in the order of the pairs.
pub(crate) fn make_chats(senders: &mut [&mut Joined], pairs: &[PairUsers]) -> anyhow::Result<Vec<Chat>> {
    let mut chats = vec![None; pairs.len()];
    let mut waiting: Vec<usize> = (0..pairs.len()).collect();
    let start = Instant::now();
    while !waiting.is_empty() {
        let mut again = Vec::new();
        let mut pause = Duration::ZERO;
        for wave in waiting.chunks(WAVE) {
            for &pair in wave {
                senders[pair].ask_for_chat(&pairs[pair])?;
            }
            for &pair in wave {
                match senders[pair].chat().with_context(|| format!("pair {pair}"))? {
                    Ok(chat) => chats[pair] = Some(chat),
                    Err(wait) => {
                        again.push(pair);
                        pause = pause.max(wait);
                    }
                }
            }
        }
        if !again.is_empty() && start.elapsed() > PATIENCE {
            bail!("the server still refuses to make {} chats after {} s", again.len(), PATIENCE.as_secs());
        }
        std::thread::sleep(pause);
        waiting = again;
    }
    chats.into_iter().map(|chat| chat.context("a pair without a chat")).collect()
}
