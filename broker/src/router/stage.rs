//! Hot path: messages on their way from one publisher to everybody, collected per destination while a read chunk
//! is worked off, and handed over once. Two copies of a few dozen bytes per message and destination; no lock, no
//! allocation, no system call before the flush.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use futures::future::BoxFuture;
use levee_protocol::ids::{AccountName, NodeId};
use levee_protocol::wire::encode;

use crate::router::peers::{Link, frames};
use crate::router::route::{Route, Target, settle};
use crate::router::sink::{ClientInfo, Inbound, InboundItem, Sink};
use crate::router::table::{Admission, Subscription};
use crate::router::{MessageRef, Router};
use crate::runtime::chance::Chance;
use crate::session::SessionHandle;
use crate::session::outbound::{Delivery, Pressure, Tally};

/// What one publisher has staged.
pub(crate) struct Stage {
    slots: Vec<Slot>,
    slot_of: HashMap<u64, u32, RandomState>,
    links: Vec<LinkSlot>,
    link_of: HashMap<NodeId, u32, RandomState>,
    sinks: Vec<SinkSlot>,
    dirty: Vec<u32>,
    dirty_links: Vec<u32>,
    dirty_sinks: bool,
    uncounted: Vec<u32>,
    ended: Vec<Arc<Subscription>>,
    pressed: Option<(Pressure, Pressed)>,
    pool: Pool,
    staged: usize,
    has_own: bool,
    chance: Chance,
}

struct Slot {
    to: Arc<SessionHandle>,
    bytes: Vec<u8>,
    tally: Tally,
    is_dirty: bool,
}

struct LinkSlot {
    to: Arc<Link>,
    bytes: Vec<u8>,
    tally: Tally,
}

struct SinkSlot {
    to: Arc<dyn Sink>,
    items: Vec<InboundItem>,
}

enum Pressed {
    Session(Arc<SessionHandle>),
    Link(Arc<Link>),
}

/// A message, and what of its wire form can be used again.
#[derive(Clone, Copy)]
pub(crate) struct Staged<'a> {
    pub(crate) message: MessageRef<'a>,
    /// What is subscribed to: the message's subject, or the inbox of who asked for the message.
    pub(crate) to: &'a [u8],
    /// What follows the sid in MSG and HMSG alike: `[reply ]sizes CRLF header payload CRLF`, if it lies in one piece
    /// in the publisher's own PUB. Else empty.
    pub(crate) tail: &'a [u8],
}

/// Who of those that match is meant.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// All plain subscriptions and one member of each group.
    Everybody,
    /// What the node that sent it decided.
    Named { plain: bool, queues: &'a [&'a [u8]] },
}

impl Stage {
    /// A stage. `own` is the publisher's own connection, which is served last.
    pub(crate) fn new(own: Option<&Arc<SessionHandle>>) -> Self {
        let mut stage = Self {
            slots: Vec::new(),
            slot_of: HashMap::default(),
            links: Vec::new(),
            link_of: HashMap::default(),
            sinks: Vec::new(),
            dirty: Vec::new(),
            dirty_links: Vec::new(),
            dirty_sinks: false,
            uncounted: Vec::new(),
            ended: Vec::new(),
            pressed: None,
            pool: Pool::default(),
            staged: 0,
            has_own: own.is_some(),
            chance: Chance::new(),
        };
        if let Some(own) = own {
            stage.slot(own);
        }
        stage
    }

    /// Where messages to this session are staged. Valid until [`Self::forget_slots`].
    pub(crate) fn slot(&mut self, to: &Arc<SessionHandle>) -> u32 {
        *self.slot_of.entry(to.cid).or_insert_with(|| {
            self.slots.push(Slot {
                to: Arc::clone(to),
                bytes: Vec::new(),
                tally: Tally::default(),
                is_dirty: false,
            });
            self.slots.len() as u32 - 1
        })
    }

    pub(crate) fn link_slot(&mut self, to: &Arc<Link>) -> u32 {
        *self.link_of.entry(to.node()).or_insert_with(|| {
            self.links.push(LinkSlot { to: Arc::clone(to), bytes: Vec::new(), tally: Tally::default() });
            self.links.len() as u32 - 1
        })
    }

    pub(crate) fn sink_slot(&mut self, to: Arc<dyn Sink>) -> u32 {
        let id = to.id();
        let known = self.sinks.iter().position(|known| known.to.id() == id);
        known.unwrap_or_else(|| {
            self.sinks.push(SinkSlot { to, items: Vec::new() });
            self.sinks.len() - 1
        }) as u32
    }

    /// Whether anything waits for a flush: then routes may be forgotten, but not what they point to.
    pub(crate) fn holds_any(&self) -> bool {
        !self.dirty.is_empty() || !self.dirty_links.is_empty() || self.dirty_sinks
    }

    /// Drops all destinations but the own one, which routes that are forgotten now pointed to.
    pub(crate) fn forget_slots(&mut self) {
        debug_assert!(self.dirty.is_empty() && self.dirty_links.is_empty() && !self.dirty_sinks);
        let kept = usize::from(self.has_own);
        if self.slots.len() > kept {
            self.slots.truncate(kept);
            self.slot_of.clear();
            if let Some(own) = self.slots.first() {
                self.slot_of.insert(own.to.cid, 0);
            }
        }
        self.links.clear();
        self.link_of.clear();
        self.sinks.clear();
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.slots.len() > SLOTS_MAX || self.sinks.len() > SINKS_MAX
    }

    /// Bytes that wait for the next flush.
    pub(crate) fn staged(&self) -> usize {
        self.staged
    }

    /// Protocol text for the publisher itself, after what was staged for it before.
    pub(crate) fn own(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.has_own);
        touch(&mut self.slots[0], 0, &mut self.dirty, &mut self.pool)
    }

    /// Counts a delivery to the publisher itself that is written by hand. False if there is to be none.
    pub(crate) fn admit_own(&mut self, subscription: &Arc<Subscription>) -> bool {
        match subscription.admit() {
            Admission::Uncounted => subscription.count(1),
            Admission::Counted => {}
            Admission::Last => self.ended.push(Arc::clone(subscription)),
            Admission::Refused => return false,
        }
        self.slots[0].tally.msgs += 1;
        true
    }

    /// Stages a message for everybody on the route. Returns for how many clients and peers.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        account: &AccountName,
        at: u32,
        route: &mut Route,
        staged: &Staged<'_>,
        wanted: Wanted<'_>,
    ) -> usize {
        let mut copies = 0;
        if !matches!(wanted, Wanted::Named { plain: false, .. }) {
            for target in &mut route.plain {
                if target.is_kept_away(staged) {
                    continue;
                }
                match target.subscription.admit() {
                    Admission::Uncounted => target.uncounted += 1,
                    Admission::Counted => {}
                    Admission::Last => self.ended.push(Arc::clone(&target.subscription)),
                    Admission::Refused => continue,
                }
                copies += 1;
                self.staged += write(&mut self.slots, &mut self.dirty, &mut self.pool, target, staged);
            }
            if at == 0 {
                // A route that is not kept does not live to see the flush.
                settle(route);
            } else if !route.is_uncounted && copies > 0 {
                route.is_uncounted = true;
                self.uncounted.push(at);
            }
        }
        if route.queues.is_empty() && route.links.is_empty() {
            return copies;
        }
        copies + self.deliver_apart(account, route, staged, wanted)
    }

    /// Queue groups and peers.
    fn deliver_apart(
        &mut self,
        account: &AccountName,
        route: &mut Route,
        staged: &Staged<'_>,
        wanted: Wanted<'_>,
    ) -> usize {
        let mut copies = 0;
        let mut picks: Vec<(u32, &[u8])> = Vec::new();
        for group in &mut route.queues {
            if let Wanted::Named { queues, .. } = wanted
                && !queues.contains(&&*group.name)
            {
                continue;
            }
            let count = group.members.len();
            let first = if count > 1 { self.chance.below(count) } else { 0 };
            let taken = (0..count).map(|step| (first + step) % count).find(|&at| {
                let member = &group.members[at];
                // A member that cannot take it is passed over for the next.
                if member.is_kept_away(staged)
                    || self.slots[member.slot as usize].to.outbound.pressure() == Pressure::Gone
                {
                    return false;
                }
                match member.subscription.admit() {
                    Admission::Uncounted => member.subscription.count(1),
                    Admission::Counted => {}
                    Admission::Last => self.ended.push(Arc::clone(&member.subscription)),
                    Admission::Refused => return false,
                }
                true
            });
            if let Some(at) = taken {
                copies += 1;
                let member = &group.members[at];
                self.staged += write(&mut self.slots, &mut self.dirty, &mut self.pool, member, staged);
            } else {
                let weights = group.remote.iter().map(|peer| peer.weight as usize);
                let total: usize = weights.sum();
                if total > 0 {
                    let mut drawn = self.chance.below(total);
                    for peer in &group.remote {
                        if drawn < peer.weight as usize {
                            picks.push((peer.slot, &group.name));
                            break;
                        }
                        drawn -= peer.weight as usize;
                    }
                }
            }
        }
        for target in &route.links {
            let queues: Vec<&[u8]> =
                picks.iter().filter(|(slot, _)| *slot == target.slot).map(|(_, name)| *name).collect();
            copies += self.stage_for_peer(target.slot, account, staged, true, &queues);
        }
        picks.retain(|(slot, _)| route.links.iter().all(|target| target.slot != *slot));
        while let Some((slot, _)) = picks.first().copied() {
            let queues: Vec<&[u8]> =
                picks.iter().filter(|(other, _)| *other == slot).map(|(_, name)| *name).collect();
            copies += self.stage_for_peer(slot, account, staged, false, &queues);
            picks.retain(|(other, _)| *other != slot);
        }
        copies
    }

    fn stage_for_peer(
        &mut self,
        at: u32,
        account: &AccountName,
        staged: &Staged<'_>,
        plain: bool,
        queues: &[&[u8]],
    ) -> usize {
        let slot = &mut self.links[at as usize];
        if !slot.to.is_connected() {
            return 0;
        }
        if slot.tally.msgs == 0 {
            slot.bytes = self.pool.take();
            self.dirty_links.push(at);
        }
        slot.tally.msgs += 1;
        slot.tally.bytes += (staged.message.header.len() + staged.message.payload.len()) as u64;
        let before = slot.bytes.len();
        frames::put_message(&mut slot.bytes, account, staged, plain, queues);
        self.staged += slot.bytes.len() - before;
        1
    }

    /// Notes a message of the current chunk for a sink of the route.
    pub(crate) fn sink(&mut self, route: &Route, item: InboundItem) {
        for &at in &route.sinks {
            self.sinks[at as usize].items.push(item);
            self.dirty_sinks = true;
        }
    }

    /// Whether [`Self::flush_sinks`] needs the chunk.
    pub(crate) fn has_sinks(&self) -> bool {
        self.dirty_sinks
    }

    /// Routes with deliveries that are not counted yet.
    pub(crate) fn take_uncounted(&mut self, mut settle_route: impl FnMut(u32)) {
        for at in self.uncounted.drain(..) {
            settle_route(at);
        }
    }

    /// Hands everything over to other sessions and peers. What is for the publisher itself waits for
    /// [`Self::flush_own`]: its PONG promises that this has happened.
    pub(crate) fn flush_others(&mut self, router: &Router) {
        for at in self.dirty_links.drain(..) {
            let slot = &mut self.links[at as usize];
            let pressure = slot.to.push_messages(&mut slot.bytes, std::mem::take(&mut slot.tally));
            self.pool.give_back(std::mem::take(&mut slot.bytes));
            note(&mut self.pressed, pressure, || Pressed::Link(Arc::clone(&slot.to)));
        }
        let mut direct = DIRECT_MAX;
        let mut own_waits = false;
        for at in std::mem::take(&mut self.dirty) {
            if at == 0 && self.has_own {
                own_waits = true;
                continue;
            }
            let delivery = if direct > 0 { Delivery::Direct } else { Delivery::Task };
            direct = direct.saturating_sub(1);
            self.flush_slot(at, delivery);
        }
        if own_waits {
            self.dirty.push(0);
        }
        for ended in self.ended.drain(..) {
            router.subscription_ended(&ended);
        }
        self.staged = 0;
    }

    /// Hands the chunk to the sinks that have messages in it. The futures are to be waited for before reading on.
    pub(crate) fn flush_sinks(
        &mut self,
        from: &Arc<ClientInfo>,
        chunk: &bytes::Bytes,
        full: &mut Vec<BoxFuture<'static, ()>>,
    ) {
        self.dirty_sinks = false;
        for slot in &mut self.sinks {
            if slot.items.is_empty() {
                continue;
            }
            let batch = Inbound { chunk: chunk.clone(), items: std::mem::take(&mut slot.items) };
            full.extend(slot.to.accept(from, batch.compacted()));
        }
    }

    /// Hands the publisher what it gets itself.
    pub(crate) fn flush_own(&mut self) {
        if !self.dirty.is_empty() {
            self.dirty.clear();
            self.flush_slot(0, Delivery::Direct);
        }
    }

    fn flush_slot(&mut self, at: u32, delivery: Delivery) {
        let slot = &mut self.slots[at as usize];
        slot.is_dirty = false;
        let tally = std::mem::take(&mut slot.tally);
        let pressure = slot.to.outbound.hand_over(&mut slot.bytes, tally, delivery);
        self.pool.give_back(std::mem::take(&mut slot.bytes));
        note(&mut self.pressed, pressure, || Pressed::Session(Arc::clone(&slot.to)));
    }

    /// Whether the destination that had most waiting still has more than it should.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.as_ref().is_some_and(|(_, to)| to.is_pressed())
    }

    /// Waits for the destination that had most waiting, for a bounded time. True if NATS would call it a stall.
    pub(crate) async fn relieve(&mut self) -> bool {
        let Some((_, to)) = self.pressed.take() else { return false };
        let pressure = to.pressure();
        match to {
            Pressed::Session(session) => session.outbound.relieved(pressure).await,
            Pressed::Link(link) => link.relieved(pressure).await,
        }
        pressure == Pressure::Hard
    }
}

impl Pressed {
    fn pressure(&self) -> Pressure {
        match self {
            Self::Session(session) => session.outbound.pressure(),
            Self::Link(link) => link.pressure(),
        }
    }

    fn is_pressed(&self) -> bool {
        matches!(self.pressure(), Pressure::Soft | Pressure::Hard)
    }
}

/// Remembers the worst destination.
fn note(worst: &mut Option<(Pressure, Pressed)>, pressure: Pressure, to: impl FnOnce() -> Pressed) {
    if matches!(pressure, Pressure::Soft | Pressure::Hard)
        && worst.as_ref().is_none_or(|(known, to)| *known < pressure || !to.is_pressed())
    {
        *worst = Some((pressure, to()));
    }
}

#[inline]
fn touch<'a>(slot: &'a mut Slot, at: u32, dirty: &mut Vec<u32>, pool: &mut Pool) -> &'a mut Vec<u8> {
    if !slot.is_dirty {
        slot.is_dirty = true;
        slot.bytes = pool.take();
        dirty.push(at);
    }
    &mut slot.bytes
}

#[inline]
fn write(
    slots: &mut [Slot],
    dirty: &mut Vec<u32>,
    pool: &mut Pool,
    target: &Target,
    staged: &Staged<'_>,
) -> usize {
    let slot = &mut slots[target.slot as usize];
    let message = &staged.message;
    let header = if target.headers { message.header } else { &[] };
    slot.tally.msgs += 1;
    slot.tally.bytes += (header.len() + message.payload.len()) as u64;
    if let Some(guard) = &target.guard
        && !message.reply.is_empty()
    {
        // Before the message leaves, so that its answer finds it.
        guard.asked(message.reply);
    }
    let out = touch(slot, target.slot, dirty, pool);
    let before = out.len();
    let has_whole_tail = !staged.tail.is_empty() && header.len() == message.header.len();
    if has_whole_tail && !target.prefix.is_empty() {
        let prefix = &target.prefix[usize::from(header.is_empty())..];
        out.reserve(prefix.len() + staged.tail.len());
        out.extend_from_slice(prefix);
        out.extend_from_slice(staged.tail);
    } else {
        let message = encode::Message {
            subject: message.subject,
            sid: &target.subscription.sid,
            reply: message.reply,
            header,
            payload: message.payload,
        };
        out.reserve(encode::message_len_max(&message));
        encode::message(out, &message);
    }
    out.len() - before
}

/// Buffers that were handed over and came back empty.
#[derive(Default)]
struct Pool {
    buffers: Vec<Vec<u8>>,
    capacity: usize,
}

impl Pool {
    #[inline]
    fn take(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.capacity -= buffer.capacity();
        buffer
    }

    fn give_back(&mut self, buffer: Vec<u8>) {
        debug_assert!(buffer.is_empty());
        if buffer.capacity() > 0 && self.capacity + buffer.capacity() <= POOL_BYTES_MAX {
            self.capacity += buffer.capacity();
            self.buffers.push(buffer);
        }
    }
}

const POOL_BYTES_MAX: usize = 2 << 20;
const SLOTS_MAX: usize = 1 << 16;
const SINKS_MAX: usize = 1024;
/// How many destinations a publisher writes to itself before it leaves the rest to their own tasks, which may run
/// on other cores.
const DIRECT_MAX: usize = 16;
