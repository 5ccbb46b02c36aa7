//! Hot path: what each operation of a client does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use levee_broker_core::permission::Grant;
use levee_protocol::subject;
use levee_protocol::wire::{ClientOp, ConnectOptions, PublishOp, Span, encode, quoted};
use serde_json::{Value, json};

use crate::router::stage::{Staged, Wanted};
use crate::router::{ClientInfo, InboundItem, MessageRef, Subscription};
use crate::runtime::clock;
use crate::session::guard::{Guard, Verdict};
use crate::session::{CloseReason, Ending, Identity, Session};

impl Session {
    /// Any op but a publish of an authenticated client. CONNECT is given back: it is done between chunks.
    pub(super) fn operate(
        &mut self,
        op: ClientOp,
        buf: &BytesMut,
    ) -> Result<Option<Box<ConnectOptions>>, Ending> {
        self.is_active |= op != ClientOp::Pong;
        if let ClientOp::Connect { json } = op {
            let options = ConnectOptions::parse(json.of(buf)).map_err(|error| {
                tracing::debug!("cid {}: {error}", self.handle.cid);
                Ending::silently(CloseReason::ParseError)
            })?;
            return Ok(Some(Box::new(options)));
        }
        match op {
            ClientOp::Ping => self.ping(),
            ClientOp::Pong => self.pong(),
            ClientOp::Subscribe { subject, queue, sid } => {
                self.subscribe(subject.of(buf), queue.of(buf), sid.of(buf));
            }
            ClientOp::Unsubscribe { sid, max } => self.unsubscribe(sid.of(buf), max),
            ClientOp::Info | ClientOp::Ok => {}
            ClientOp::Err => return Err(Ending::silently(CloseReason::ClientClosed)),
            ClientOp::Publish(_) | ClientOp::Connect { .. } => {}
        }
        Ok(None)
    }

    /// Returns how many copies were staged.
    #[inline]
    pub(super) fn publish(&mut self, op: &PublishOp, buf: &BytesMut) -> Result<usize, Ending> {
        let subject = op.subject.of(buf);
        let reply = op.reply.of(buf);
        if op.is_hpub && !self.options.headers {
            return Err(Ending::silently(CloseReason::MessageHeaderViolation));
        }
        self.received.msgs += 1;
        self.received.bytes += (op.header.len() + op.payload.len()) as u64;
        if self.options.pedantic && !subject::is_valid_literal(subject) {
            self.err("Invalid Publish Subject");
        }
        let Some(account) = &self.account else { return Ok(0) };
        let at = self.routes.find(self.sessions.router(), account, subject, self.view, &mut self.stage);
        if !self.may_publish(at, subject, reply) {
            return Ok(0);
        }
        if self.options.verbose {
            self.stage.own().extend_from_slice(encode::OK);
        }

        let Some(account) = &self.account else { return Ok(0) };
        let route = self.routes.route(at);
        let message = MessageRef { subject, reply, header: op.header.of(buf), payload: op.payload.of(buf) };
        let staged = Staged { message, to: subject, tail: tail(op, buf) };
        let copies = self.stage.deliver(&account.name, at, route, &staged, Wanted::Everybody);
        if !route.sinks.is_empty() {
            let item =
                InboundItem { subject: op.subject, reply: op.reply, header: op.header, payload: op.payload };
            self.stage.sink(route, item);
        }
        if copies == 0 && !route.responders && !reply.is_empty() {
            self.nobody_took(subject, reply);
        }
        Ok(copies)
    }

    /// Refuses what the user may not do, and what would pass for a message of the system itself.
    #[inline]
    fn may_publish(&mut self, at: u32, subject: &[u8], reply: &[u8]) -> bool {
        if matches!(subject.first(), Some(b'_' | b'$')) && RESERVED.iter().any(|own| subject.starts_with(own))
        {
            self.violation("Publish to", subject);
            return false;
        }
        if self.routes.route(at).verdict != Verdict::Allowed && !self.is_answer(subject) {
            self.violation("Publish to", subject);
            return false;
        }
        if matches!(reply.first(), Some(b'_' | b'$'))
            && RESERVED_REPLIES.iter().any(|own| reply.starts_with(own))
        {
            self.violation("Publish with Reply of", reply);
            return false;
        }
        true
    }

    #[cold]
    fn is_answer(&self, subject: &[u8]) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.answers(subject))
    }

    /// A request that reached nobody: perhaps the server itself is asked.
    #[cold]
    fn nobody_took(&mut self, subject: &[u8], reply: &[u8]) {
        if subject == USER_INFO {
            self.tell_who_you_are(reply);
        } else if self.options.no_responders {
            self.nobody_responds(subject, reply);
        }
    }

    fn tell_who_you_are(&self, reply: &[u8]) {
        let info = self.sessions.info();
        let mut server = json!({
            "name": info.server_name,
            "host": info.host,
            "id": info.server_id,
            "ver": info.version,
            "jetstream": info.jetstream,
            "flags": u8::from(info.jetstream),
            "seq": 0,
            "time": self.sessions.now(),
        });
        for (name, text) in [("cluster", info.cluster), ("domain", info.domain)] {
            if !text.is_empty() {
                server[name] = text.into();
            }
        }
        let account = &self.client.account;
        let mut who = json!({
            "user": self.client.user, "account": account.as_str(), "account_name": account.as_str(),
        });
        if let Some(guard) = &self.guard {
            who["permissions"] = shown(guard.permissions().grant());
        }
        let answer = json!({ "server": server, "data": who }).to_string();
        let message = MessageRef { subject: reply, payload: answer.as_bytes(), ..MessageRef::default() };
        self.sessions.router().send_one(account, reply, message);
    }

    /// Answers a request that reached nobody, on the requestor's own subscription.
    fn nobody_responds(&mut self, subject: &[u8], reply: &[u8]) {
        let Some(account) = &self.account else { return };
        let mut own = None;
        account.for_each_match(reply, |interest| {
            if let crate::router::table::Interest::Local(subscription) = interest
                && subscription.owner.cid == self.handle.cid
                && subscription.queue.is_empty()
                && subscription.is_open()
            {
                own.get_or_insert_with(|| Arc::clone(subscription));
            }
        });
        if let Some(own) = own
            && self.stage.admit_own(&own)
        {
            encode::no_responders(self.stage.own(), reply, &own.sid, subject);
        }
    }

    fn subscribe(&mut self, subject: &[u8], queue: &[u8], sid: &[u8]) {
        // Messages before it are routed without it and leave before peers hear of it; and a subscription that had
        // its last one of them gives its sid back.
        self.flush_messages();
        let limits = self.sessions.limits();
        let Some(account) = &self.account else { return };
        let may_subscribe =
            self.guard.as_ref().is_none_or(|guard| guard.permissions().may_subscribe(subject, queue));
        if !may_subscribe || queue == SYSTEM_GROUP {
            self.subscription_violation(subject, queue, sid);
            return;
        }
        if limits.max_subscription_tokens > 0
            && subject::tokens(subject).count() > limits.max_subscription_tokens
        {
            let text =
                format!("Permissions Violation for Subscription to {}, too many tokens", quoted(subject));
            self.err(&text);
            return;
        }
        if !subject::is_valid_filter(subject) {
            self.err("Invalid Subject");
            return;
        }
        let subscription = {
            let mut owned = self.handle.subscriptions.lock();
            if owned.contains_key(sid) {
                // A sid that is in use stays with its subscription.
                None
            } else if self.max_subscriptions.is_some_and(|max| owned.len() as u64 >= max) {
                drop(owned);
                self.err("maximum subscriptions exceeded");
                return;
            } else {
                if let Some(guard) = &self.guard {
                    guard.prepare(subject, queue);
                }
                let subscription = Subscription::new(
                    account,
                    subject,
                    queue,
                    sid,
                    Arc::clone(&self.handle),
                    self.guard.clone(),
                );
                owned.insert(sid.into(), Arc::clone(&subscription));
                Some(subscription)
            }
        };
        if let Some(subscription) = subscription {
            self.sessions.router().subscribe(&subscription);
            self.routes.refresh(self.sessions.router(), &mut self.stage);
        }
        self.ok();
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) {
        let known = self.handle.subscriptions.lock().get(sid).cloned();
        if let Some(subscription) = known {
            // What is staged for it counts.
            self.flush_messages();
            let goes_on = max.is_some_and(|max| max > 0 && subscription.limit(max));
            if !goes_on {
                self.sessions.router().subscription_ended(&subscription);
            }
            self.routes.refresh(self.sessions.router(), &mut self.stage);
        }
        self.ok();
    }

    fn ping(&mut self) {
        self.stage.own().extend_from_slice(encode::PONG);
        if self.connected && !self.ponged {
            self.ponged = true;
            if self.options.protocol >= 1 {
                let account = self.client.account.as_str().to_owned();
                let mut info = self.sessions.info_for(&self.handle);
                info.connect_info = true;
                info.account_is_system = account == "$SYS";
                info.remote_account = account;
                encode::info(self.stage.own(), &info);
                // From now on INFO may come at any time.
                self.handle.takes_info.store(true, Ordering::Relaxed);
            }
        }
    }

    fn pong(&mut self) {
        let pulse = &self.handle.pulse;
        if pulse.unanswered.swap(0, Ordering::Relaxed) > 0 {
            let round_trip = clock::since(pulse.pinged.load(Ordering::Relaxed)).as_nanos();
            pulse.round_trip.store(u64::try_from(round_trip).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        }
    }

    /// CONNECT, the first or another one: options, credentials, account.
    pub(super) async fn connect(&mut self, options: ConnectOptions) -> Result<(), Ending> {
        if let Some(text) = options.refusal() {
            let reason = match text {
                "invalid client protocol" => CloseReason::BadClientProtocolVersion,
                "no responders requires headers support" => CloseReason::NoRespondersRequiresHeaders,
                _ => CloseReason::AuthenticationFailure,
            };
            return Err(Ending::with(reason, text));
        }
        let Some(identity) = self.sessions.identify(&options).await else {
            tracing::warn!(
                "{} - cid:{} - authentication error{}",
                self.handle.remote,
                self.handle.cid,
                if options.user.is_empty() { String::new() } else { format!(" - User {:?}", options.user) }
            );
            return Err(Ending::with(CloseReason::AuthenticationFailure, "Authorization Violation"));
        };
        if self.connected {
            self.drop_subscriptions();
        } else {
            // The first estimate of the round trip: from INFO to CONNECT.
            let round_trip = clock::since(self.handle.pulse.accepted.load(Ordering::Relaxed)).as_nanos();
            let round_trip = u64::try_from(round_trip).unwrap_or(u64::MAX).max(1);
            self.handle.pulse.round_trip.store(round_trip, Ordering::Relaxed);
        }
        self.connected = true;
        self.handle.pulse.auth_due.store(0, Ordering::Relaxed);
        self.handle.headers.store(options.headers, Ordering::Relaxed);
        self.view.without = (!options.echo).then_some(self.handle.cid);
        self.options = options;
        self.become_user(identity)?;
        if !self.handle.subscriptions.lock().is_empty() {
            // Routes of publishers remember whether this client takes headers.
            self.sessions.router().moved();
        }
        self.routes.forget(&mut self.stage);
        self.ok();
        self.stage.flush_own();
        Ok(())
    }

    /// Fails if there are as many clients of that account as may be.
    pub(super) fn become_user(&mut self, identity: Identity) -> Result<(), Ending> {
        self.place = None;
        let Ok(place) = self.sessions.places().take(&identity.account) else {
            let (remote, cid, account) = (self.handle.remote, self.handle.cid, &identity.account);
            tracing::warn!("{remote} - cid:{cid} - maximum connections of account {account} exceeded");
            return Err(Ending::crowded_out());
        };
        self.place = place;
        let limits = self.sessions.limits().of(&identity.account);
        self.max_subscriptions = limits.max_subscriptions;
        if let Some(max) = limits.max_payload {
            self.parser.set_max_payload(usize::try_from(max).unwrap_or(usize::MAX));
        }
        let client = Arc::new(ClientInfo {
            account: identity.account.clone(),
            cid: self.handle.cid,
            remote: Some(self.handle.remote),
            user: identity.user,
            name: self.options.name.clone(),
            lang: self.options.lang.clone(),
            version: self.options.version.clone(),
        });
        self.client = Arc::clone(&client);
        self.handle.set_client(client);
        self.account = Some(self.sessions.router().account(&identity.account));
        self.guard = identity.permissions.map(|permissions| Arc::new(Guard::new(permissions)));
        self.routes.judge_by(self.guard.clone());
        Ok(())
    }

    pub(super) fn drop_subscriptions(&mut self) {
        let owned = std::mem::take(&mut *self.handle.subscriptions.lock());
        for subscription in owned.into_values() {
            self.sessions.router().unsubscribe(&subscription);
        }
    }

    fn ok(&mut self) {
        if self.options.verbose {
            self.stage.own().extend_from_slice(encode::OK);
        }
    }

    fn err(&mut self, text: &str) {
        encode::err(self.stage.own(), text);
    }

    #[cold]
    fn violation(&mut self, what: &str, subject: &[u8]) {
        let subject = quoted(subject);
        self.err(&format!("Permissions Violation for {what} {subject}"));
        self.log_violation(&format!("{what} {subject}"));
    }

    #[cold]
    fn subscription_violation(&mut self, subject: &[u8], queue: &[u8], sid: &[u8]) {
        let mut what = format!("Subscription to {}", quoted(subject));
        if !queue.is_empty() {
            what += &format!(" using queue {}", quoted(queue));
        }
        self.err(&format!("Permissions Violation for {what}"));
        self.log_violation(&format!("{what}, sid {}", quoted(sid)));
    }

    /// Once in a while: a client can be refused millions of times in a second.
    fn log_violation(&mut self, what: &str) {
        let violations = &mut self.violations;
        if violations.logged_at != 0 && clock::since(violations.logged_at) < VIOLATION_LOG_PAUSE {
            violations.unlogged += 1;
            return;
        }
        violations.logged_at = clock::ticks().max(1);
        let unlogged = match std::mem::take(&mut violations.unlogged) {
            0 => String::new(),
            count => format!(" (and {count} more before)"),
        };
        let (remote, cid) = (self.handle.remote, self.handle.cid);
        let (account, user) = (&self.client.account, &self.client.user);
        tracing::warn!("{remote} - cid:{cid} - user {user:?} of {account} - Violation: {what}{unlogged}");
    }
}

/// Permissions as `$SYS.REQ.USER.INFO` tells them.
fn shown(grant: &Grant) -> Value {
    fn lists<T: ToString>(allow: &[T], deny: &[T]) -> Value {
        let mut out = json!({});
        for (name, list) in [("allow", allow), ("deny", deny)] {
            if !list.is_empty() {
                out[name] = list.iter().map(T::to_string).collect();
            }
        }
        out
    }
    let (publish, subscribe) = (&grant.publish, &grant.subscribe);
    let mut out = json!({
        "publish": lists(&publish.allow, &publish.deny),
        "subscribe": lists(&subscribe.allow, &subscribe.deny),
    });
    if let Some(responses) = &grant.responses {
        out["responses"] = json!({ "max": responses.max, "ttl": responses.expires.0 });
    }
    out
}

/// What follows the subject in a PUB is what follows the sid in a MSG, if the client wrote it the usual way: one
/// blank between arguments, sizes without leading zeros, CRLF. Then it is copied in one piece.
#[inline]
fn tail<'a>(op: &PublishOp, buf: &'a [u8]) -> &'a [u8] {
    let body_len = op.header.len() + op.payload.len();
    let sizes = if op.is_hpub { digits(op.header.len()) + 1 + digits(body_len) } else { digits(body_len) };
    let body = if op.is_hpub { op.header.start } else { op.payload.start } as usize;
    let end = op.payload.end as usize + 2;
    let Some(sizes_at) = body.checked_sub(sizes + 2) else { return &[] };
    let is_after = |span: Span| span.end as usize + 1 == sizes_at && buf[sizes_at - 1] == b' ';
    let is_usual = if op.reply.is_empty() {
        is_after(op.subject)
    } else {
        is_after(op.reply) && op.subject.end + 1 == op.reply.start
    };
    // An HPUB without header block is delivered as MSG, which has one size.
    let is_usual = is_usual
        && (!op.is_hpub || (!op.header.is_empty() && buf[sizes_at + digits(op.header.len())] == b' '));
    if !is_usual || buf[body - 2] != b'\r' {
        return &[];
    }
    let start = if op.reply.is_empty() { sizes_at } else { op.reply.start as usize };
    &buf[start..end]
}

#[inline]
fn digits(number: usize) -> usize {
    match number {
        0..10 => 1,
        10..100 => 2,
        100..1000 => 3,
        _ => number.ilog10() as usize + 1,
    }
}

/// Every account may ask who it is to the server.
const USER_INFO: &[u8] = b"$SYS.REQ.USER.INFO";
/// Subjects of the system itself, which no client may use.
const RESERVED: [&[u8]; 3] = [b"_GR_.", b"$GR.", b"$NRG."];
/// The queue group of nats-server's own services, which no client joins.
const SYSTEM_GROUP: &[u8] = b"_sys_";
const VIOLATION_LOG_PAUSE: Duration = Duration::from_secs(1);
/// Reply subjects that would make an answer look like something of the system itself.
const RESERVED_REPLIES: [&[u8]; 4] = [b"_R_.", b"$JS.ACK.", b"_GR_.", b"$GR."];

#[cfg(test)]
mod tests {
    use super::*;
    use levee_protocol::wire::Parser;
    use levee_protocol::wire::parse::Limits;

    fn check(line: &str, expected: &str) {
        let Ok(Some((ClientOp::Publish(op), _))) = Parser::new(Limits::default()).next(line.as_bytes(), 0)
        else {
            panic!("{line:?} is not a publish");
        };
        assert_eq!(String::from_utf8_lossy(tail(&op, line.as_bytes())), expected, "{line:?}");
    }

    #[test]
    fn the_usual_publish_is_delivered_as_it_was_written() {
        check("PUB foo 2\r\nhi\r\n", "2\r\nhi\r\n");
        check("PUB foo 0\r\n\r\n", "0\r\n\r\n");
        check("PUB foo bar 12\r\nhello, world\r\n", "bar 12\r\nhello, world\r\n");
        check("HPUB foo 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "12 14\r\nNATS/1.0\r\n\r\nhi\r\n");
        check("HPUB foo r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n");
    }

    #[test]
    fn an_unusual_publish_is_written_anew() {
        for line in [
            "PUB foo  2\r\nhi\r\n",
            "PUB foo\t2\r\nhi\r\n",
            "PUB foo 02\r\nhi\r\n",
            "PUB foo 2 \r\nhi\r\n",
            "PUB foo 2\nhi\r\n",
            "PUB foo  bar 2\r\nhi\r\n",
            "PUB foo bar\t2\r\nhi\r\n",
            "PUB foo bar 2\nhi\r\n",
            "HPUB foo 12\t14\r\nNATS/1.0\r\n\r\nhi\r\n",
            "HPUB foo 012 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            "HPUB foo 0 2\r\nhi\r\n",
        ] {
            check(line, "");
        }
    }

    #[test]
    fn digits_are_counted_as_they_are_written() {
        for number in [0_usize, 1, 9, 10, 99, 100, 999, 1000, 9999, 10_000, 1_048_576] {
            assert_eq!(digits(number), number.to_string().len());
        }
    }
}
