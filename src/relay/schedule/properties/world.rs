//! A lane of the table, its writers, its statements on their way, the queue, and what a relay does with them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::message::{Lane, MessageKey};

/// A pending row.
#[derive(Clone, Debug)]
struct Row {
    group: Option<Arc<str>>,
    /// When its recorded retry is due.
    due: Option<Instant>,
    /// Due because an operator redrove it, wherever it stands in its group.
    is_redriven: bool,
    /// It can never be sent and dies when it is read, until somebody has repaired it.
    is_poison: bool,
}

/// A read of the lane that has not come back.
struct Read {
    cursor: i64,
    ids: Vec<i64>,
    /// What the sweep of the gap that was sent with it saw, and the groups that it left out.
    swept: Vec<i64>,
    left_out: Vec<(Lane, Arc<str>)>,
    /// Up to where nothing can be committed any more.
    settled_to: i64,
}

/// A read of one group that has not come back.
struct GroupRead {
    from: ReadOn,
    /// With the time of a recorded retry that is not due yet.
    rows: Vec<(i64, Option<Instant>)>,
    is_all: bool,
}

pub(super) struct World {
    schedule: Schedule,
    limits: Limits,
    now: Instant,
    next_id: i64,
    uncommitted: BTreeMap<i64, Row>,
    table: BTreeMap<i64, Row>,
    in_flight: Vec<Vec<Item>>,
    low: i64,
    cursor: i64,
    read: Option<Read>,
    read_on: Option<GroupRead>,
    /// What a statement saw that was due, with the group of what was redriven.
    due: Option<Vec<(i64, Option<Arc<str>>)>>,
    /// Accepted or dead, and not written back.
    outcomes: BTreeSet<i64>,
    /// Those of them that are dead.
    dying: BTreeSet<i64>,
    dead: BTreeMap<i64, Row>,
    /// Written back, and not forgotten.
    settled: Vec<i64>,
    remembered: Vec<Remembered>,
    /// How often each message may still be sent.
    may_send: HashMap<i64, usize>,
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            schedule: Schedule::new(limits),
            limits,
            now: Instant::now(),
            next_id: 1,
            uncommitted: BTreeMap::new(),
            table: BTreeMap::new(),
            in_flight: Vec::new(),
            low: 0,
            cursor: 0,
            read: None,
            read_on: None,
            due: None,
            outcomes: BTreeSet::new(),
            dying: BTreeSet::new(),
            dead: BTreeMap::new(),
            settled: Vec::new(),
            remembered: Vec::new(),
            may_send: HashMap::new(),
        }
    }

    pub(super) fn make(&mut self, step: &Move) {
        match step {
            Move::Write { group, count, commits, poison } => self.write(*group, *count, *commits, *poison),
            Move::Commit => self.table.append(&mut self.uncommitted),
            Move::Turn { most } => self.turn(*most),
            Move::EndRead => self.end_read(),
            Move::EndReadOn => self.end_read_on(),
            Move::EndDue => {
                for (id, redriven) in self.due.take().unwrap_or_default() {
                    match redriven {
                        Some(group) => self.schedule.start_over(&group, MessageKey { lane: 1, id }, self.cursor),
                        None => self.admit(id),
                    }
                }
                self.forget_settled();
            }
            Move::Answer { which, fates } if !self.in_flight.is_empty() => {
                let request = self.in_flight.swap_remove(which % self.in_flight.len());
                self.answer(request, fates);
            }
            Move::Answer { .. } => {}
            Move::Settle => self.settle(),
            Move::Redrive { which } if !self.dead.is_empty() => {
                let id = *self.dead.keys().nth(which % self.dead.len()).unwrap();
                let row = self.dead.remove(&id).unwrap();
                self.table.insert(id, Row { due: Some(self.now), is_redriven: true, is_poison: false, ..row });
                self.may_send.insert(id, 1);
            }
            Move::Redrive { .. } => {}
            Move::Pass { millis } => self.now += Duration::from_millis(*millis),
            Move::Reclaim { elsewhere } => self.reclaim(elsewhere),
        }
    }

    /// Writers of one group wait for each other, so their ids and their commits have the same order.
    fn write(&mut self, group: u8, count: usize, commits: bool, poison: usize) {
        let group: Option<Arc<str>> = (group > 0).then(|| Arc::from(format!("g{group}")));
        let waits = group.is_some() && self.uncommitted.values().any(|row| row.group == group);
        let rows = if commits { &mut self.table } else { &mut self.uncommitted };
        for (index, id) in (self.next_id..).take(if waits { 0 } else { count }).enumerate() {
            let is_poison = index == poison;
            rows.insert(id, Row { group: group.clone(), due: None, is_redriven: false, is_poison });
            self.may_send.insert(id, 1);
            self.next_id = id + 1;
        }
    }

    fn turn(&mut self, most: usize) {
        self.schedule.wake(self.now);
        self.begin_read(most);
        self.begin_read_on();
        let is_due = |row: &Row| row.due.is_some_and(|due| due <= self.now);
        let left_out = self.schedule.due_elsewhere();
        let is_left_out = |row: &Row| {
            let is_in = |groups: &[Arc<str>]| row.group.as_ref().is_some_and(|group| groups.contains(group));
            is_in(&left_out.all) || row.is_redriven && is_in(&left_out.redriven)
        };
        let due = self.table.iter().filter(|(_, row)| is_due(row) && !is_left_out(row));
        let due = due.map(|(id, row)| (*id, row.group.clone().filter(|_| row.is_redriven))).collect();
        self.due.get_or_insert(due);
        while self.send() {}
    }

    fn readable(&self, above: i64) -> impl Iterator<Item = (i64, &Row)> {
        self.table.range(above + 1..).filter(|(_, row)| row.due.is_none()).map(|(id, row)| (*id, row))
    }

    fn begin_read(&mut self, most: usize) {
        if self.read.is_none() {
            let left_out = self.schedule.groups_with_rest();
            let is_left_out = |group: &Arc<str>| left_out.iter().any(|(_, other)| other == group);
            let is_swept = |row: &Row| !row.group.as_ref().is_some_and(is_left_out);
            let upto = self.cursor;
            let gap = self.readable(self.low).take_while(|(id, _)| *id <= upto);
            let swept = gap.filter(|(_, row)| is_swept(row)).map(|(id, _)| id).collect();
            let ids = self.readable(upto).take(most).map(|(id, _)| id).collect();
            let settled_to = self.uncommitted.keys().next().map_or(upto, |first| upto.min(first - 1));
            self.read = Some(Read { cursor: upto, ids, swept, left_out, settled_to });
        }
    }

    fn end_read(&mut self) {
        let Some(Read { cursor, ids, swept, left_out, settled_to }) = self.read.take() else { return };
        let is_worthless = !self.schedule.no_longer_left(&left_out).is_empty();
        self.schedule.has_swept();
        if !is_worthless {
            self.low = self.low.max(settled_to);
        }
        let late = swept.into_iter().find(|id| !self.schedule.knows(*id));
        match late {
            Some(id) => self.rewind(id),
            None if self.cursor == cursor && !is_worthless => {
                self.cursor = ids.last().copied().unwrap_or(cursor);
                ids.into_iter().for_each(|id| self.admit(id));
            }
            None => {}
        }
        self.forget_settled();
    }

    fn rewind(&mut self, id: i64) {
        self.low = self.low.min(id - 1);
        self.cursor = self.cursor.min(id - 1);
    }

    fn begin_read_on(&mut self) {
        if self.read_on.is_some() {
            return;
        }
        if let Some(from) = self.schedule.next_to_read_on() {
            let of_group = |(_, row): &(&i64, &Row)| row.group.as_ref() == Some(&from.group);
            let rows = self.table.range(from.after.id + 1..).filter(of_group).take(from.most);
            let rows: Vec<_> = rows.map(|(id, row)| (*id, row.due.filter(|due| *due > self.now))).collect();
            let is_all = rows.len() < from.most;
            self.read_on = Some(GroupRead { from, rows, is_all });
        }
    }

    fn end_read_on(&mut self) {
        if let Some(GroupRead { from, rows, is_all }) = self.read_on.take() {
            let last = rows.last().map(|(id, _)| *id);
            let rows: Vec<_> =
                rows.into_iter().filter(|(id, _)| !self.schedule.knows(*id) && !self.dies(*id)).collect();
            let rows = rows.into_iter();
            let items = rows.map(|(id, until)| (item(id, Some(&from.group)), until)).collect();
            self.schedule.read_on(&from, items, last, is_all);
        }
    }

    /// A row as a statement saw it comes in. It may be settled by now, and then the schedule still knows it.
    fn admit(&mut self, id: i64) {
        let Some(row) = self.table.get(&id).cloned() else {
            assert!(self.schedule.knows(id), "{id} is settled and was forgotten while a read was under way");
            return;
        };
        let until = row.due.filter(|due| *due > self.now);
        let is_left = |group: &Arc<str>| !self.schedule.knows(id) && self.schedule.leaves_in_table(group, id);
        if row.group.as_ref().is_some_and(is_left) || self.dies(id) {
            return;
        }
        self.schedule.admit(item(id, row.group.as_deref()), until);
    }

    /// Whether a message that was read can never be sent.
    fn dies(&mut self, id: i64) -> bool {
        let is_poison = self.table.get(&id).is_some_and(|row| row.is_poison) && !self.schedule.knows(id);
        if is_poison {
            let group = self.table.get(&id).and_then(|row| row.group.clone());
            self.schedule.pass_over(id, group.as_ref());
            self.outcomes.insert(id);
            self.dying.insert(id);
        }
        is_poison
    }

    fn send(&mut self) -> bool {
        let Some(request) = self.schedule.next_request() else { return false };
        assert!(request.len() <= self.limits.request_size);
        let mut of_groups: HashMap<&Arc<str>, Vec<i64>> = HashMap::new();
        for item in &request {
            let id = item.key().id;
            assert!(!item.is_alone || request.len() == 1);
            let due = self.table.get(&id).and_then(|row| row.due);
            assert!(due.is_none_or(|due| due <= self.now), "{id} is sent before its recorded retry is due");
            let left = self.may_send.get_mut(&id).filter(|left| **left > 0);
            *left.unwrap_or_else(|| unreachable!("{id} is sent again without a failure")) -= 1;
            if let Some(group) = &item.group {
                of_groups.entry(group).or_default().push(id);
            }
        }
        for (group, ids) in of_groups {
            assert!(ids.len() <= self.limits.per_group, "{ids:?} of {group} in one request");
            let in_flight = |item: &Item| item.group.as_ref() == Some(group);
            assert!(!self.in_flight.iter().flatten().any(in_flight), "{group} has two requests in flight");
            // All that was committed before it is done: a request begins with the oldest and leaves none out.
            // But for what was redriven, which comes late anyhow.
            let is_next = |(id, row): &(&i64, &Row)| {
                let counts = !row.is_poison && !row.is_redriven || ids.contains(id);
                row.group.as_ref() == Some(group) && !self.outcomes.contains(id) && counts
            };
            let next: Vec<i64> = self.table.iter().filter(is_next).map(|(id, _)| *id).take(ids.len()).collect();
            assert_eq!(ids, next, "{group} is out of order");
        }
        self.in_flight.push(request);
        true
    }

    fn answer(&mut self, request: Vec<Item>, fates: &[Fate]) {
        let (mut done, mut again) = (Vec::new(), Vec::new());
        let mut failed: HashSet<Arc<str>> = HashSet::new();
        for (mut item, fate) in request.into_iter().zip(fates.iter().cycle()) {
            // An entry that SQS takes although an earlier one of its group failed breaks the order by itself.
            let is_behind = item.group.as_ref().is_some_and(|group| failed.contains(group));
            let fate = match fate {
                Fate::Accepted | Fate::Dead if is_behind => Fate::Again,
                fate => *fate,
            };
            let until = match fate {
                Fate::Accepted | Fate::Dead => {
                    self.outcomes.insert(item.key().id);
                    self.dying.extend((fate == Fate::Dead).then_some(item.key().id));
                    done.push(item);
                    continue;
                }
                Fate::Again => None,
                Fate::Alone => {
                    item.is_alone = true;
                    None
                }
                Fate::Later(millis) => Some(millis),
                Fate::Charged(millis) => {
                    item.charged = Some("InternalError".to_owned());
                    Some(millis)
                }
            };
            failed.extend(item.group.clone());
            *self.may_send.entry(item.key().id).or_default() += 1;
            again.push((item, until.map(|millis| self.now + Duration::from_millis(millis))));
        }
        self.schedule.finish(&done, again);
    }

    fn settle(&mut self) {
        for item in self.schedule.take_charged() {
            self.record(item.key().id, None);
        }
        for id in std::mem::take(&mut self.outcomes) {
            let row = self.table.remove(&id);
            if self.dying.remove(&id) {
                self.dead.extend(row.map(|row| (id, row)));
            }
            self.settled.push(id);
        }
        self.forget_settled();
    }

    fn forget_settled(&mut self) {
        if self.read.is_none() && self.due.is_none() && self.read_on.is_none() {
            self.settled.drain(..).for_each(|id| self.schedule.forget(id));
        }
    }

    /// A failed attempt is written down, with a time for the head of a group.
    fn record(&mut self, id: i64, due: Option<Instant>) {
        if let Some(row) = self.table.get_mut(&id) {
            row.due = due;
            row.is_redriven = false;
        }
    }

    /// Everything comes back, what is left is recorded or remembered, and the next claim begins with that.
    fn reclaim(&mut self, elsewhere: &[Fate]) {
        while let Some(request) = self.in_flight.pop() {
            self.answer(request, elsewhere);
        }
        self.end_read();
        self.end_read_on();
        self.make(&Move::EndDue);
        self.settle();
        let Leftovers { items, remembered } = self.schedule.take_leftovers();
        for Leftover { item, until, is_head } in items {
            let id = item.key().id;
            match item.charged {
                Some(_) if is_head => self.record(id, Some(until.unwrap_or(self.now))),
                Some(_) => {
                    self.record(id, None);
                    self.rewind(id);
                }
                None => self.rewind(id),
            }
        }
        self.cursor = self.low;
        self.remembered.extend(remembered);
        self.work_elsewhere(elsewhere);
        let mut heads: HashMap<Arc<str>, (i64, Instant, bool)> = HashMap::new();
        for (id, row) in &self.table {
            if let (Some(group), Some(due)) = (&row.group, row.due) {
                heads.entry(Arc::clone(group)).or_insert((*id, due, row.is_redriven));
            }
        }
        for (group, (id, due, is_redriven)) in &heads {
            let key = MessageKey { lane: 1, id: *id };
            if *is_redriven {
                self.schedule.start_over(group, key, self.cursor);
            } else {
                self.schedule.defer(group, key, *due);
            }
        }
        std::mem::take(&mut self.remembered).iter().for_each(|remembered| self.schedule.remember(remembered));
    }

    /// Another relay has the lane for a while and sends some messages, in order.
    fn work_elsewhere(&mut self, fates: &[Fate]) {
        let has_retry = self.table.values().filter(|row| row.due.is_some());
        let mut blocked: HashSet<Arc<str>> = has_retry.filter_map(|row| row.group.clone()).collect();
        for fate in fates {
            let is_free = |row: &Row| row.group.as_ref().is_none_or(|group| !blocked.contains(group));
            let Some((id, row)) = self.table.iter_mut().find(|(_, row)| is_free(row) && row.due.is_none()) else {
                return;
            };
            let id = *id;
            blocked.extend(row.group.clone());
            match fate {
                Fate::Charged(millis) => row.due = Some(self.now + Duration::from_millis(*millis)),
                Fate::Accepted => drop(self.table.remove(&id)),
                _ => {}
            }
        }
    }

    pub(super) fn check(&self) {
        let most = 2 * self.limits.window + self.limits.per_group;
        for (name, group) in &self.schedule.groups {
            assert!(group.waiting.len() <= most, "{} messages of {name} in memory", group.waiting.len());
        }
        let waiting: usize = self.schedule.groups.values().map(|group| group.counted().0).sum();
        assert_eq!(self.schedule.waiting(), waiting + self.schedule.free.len());
    }

    /// From now on everything is accepted: every message goes out in a finite number of rounds.
    pub(super) fn deliver_the_rest(mut self) {
        self.table.append(&mut self.uncommitted);
        let rounds = 10 + 4 * self.table.len();
        for _ in 0..rounds {
            let turn = Move::Turn { most: 10 };
            // A read of a group is quick. If each one took longer than a sweep, none could be known to be the last.
            for step in [turn, Move::EndReadOn, Move::EndRead, Move::EndDue, Move::Pass { millis: 1000 }] {
                self.make(&step);
            }
            while let Some(request) = self.in_flight.pop() {
                self.answer(request, &[Fate::Accepted]);
            }
            self.settle();
            self.check();
        }
        assert!(self.table.is_empty(), "left after {rounds} rounds: {:?}", self.table);
        assert_eq!((self.schedule.waiting(), self.schedule.waiting_bytes(), self.schedule.known()), (0, 0, 0));
        assert!(self.schedule.groups.is_empty(), "{:?}", self.schedule.groups);
    }
}
