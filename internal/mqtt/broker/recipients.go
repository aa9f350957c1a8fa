package broker

// recipients are who gets a message.
type recipients struct {
	own        bool // otad's handler
	reached    bool // it, or a subscription
	deliveries []delivery
	seen       map[*session]int // places in deliveries, once there are many
}

// manyRecipients is from when on a map finds a session faster than a look at all.
const manyRecipients = 16

// clear forgets sessions, which may end before the memory is used again.
func (r *recipients) clear() {
	clear(r.deliveries)
	r.deliveries = r.deliveries[:0]
	if cap(r.deliveries) > manyRecipients {
		r.deliveries = nil
	}
	r.seen = nil
}

// match collects who gets m. A session with several matching filters gets it once,
// with the highest QoS and all identifiers (3.3.4).
func (b *Broker) match(m *message, r *recipients) {
	r.own, r.reached, r.deliveries, r.seen = false, false, r.deliveries[:0], nil
	b.index.match(m.topic, func(e *entry) {
		for _, s := range e.subs {
			r.reached = true
			if s.session == nil {
				r.own = true
				continue
			}
			if !s.noLocal || s.session != m.from {
				r.add(s, m)
			}
		}
		for _, g := range e.groups {
			if s := g.pick(); s != nil {
				r.reached = true
				r.deliveries = append(r.deliveries, s.delivery(m, g))
			}
		}
	})
}

func (r *recipients) add(s *subscription, m *message) {
	d := r.find(s.session)
	if d == nil {
		if r.seen != nil {
			r.seen[s.session] = len(r.deliveries)
		}
		r.deliveries = append(r.deliveries, s.delivery(m, nil))
		return
	}
	d.qos = max(d.qos, s.qos)
	d.retain = d.retain || m.retain && s.retainAsPublished
	if s.id != 0 {
		d.subIDs = append(d.subIDs, s.id)
	}
}

// find returns the delivery by ordinary subscriptions of a session.
func (r *recipients) find(s *session) *delivery {
	if len(r.deliveries) < manyRecipients {
		for i := range r.deliveries {
			if d := &r.deliveries[i]; d.session == s && d.group == nil {
				return d
			}
		}
		return nil
	}
	if r.seen == nil {
		r.seen = make(map[*session]int, 4*manyRecipients)
		for i, d := range r.deliveries {
			if d.group == nil {
				r.seen[d.session] = i
			}
		}
	}
	if i, ok := r.seen[s]; ok {
		return &r.deliveries[i]
	}
	return nil
}

func (s *subscription) delivery(m *message, g *group) delivery {
	d := delivery{session: s.session, qos: s.qos, retain: m.retain && s.retainAsPublished, group: g}
	if s.id != 0 {
		d.subIDs = []uint32{s.id}
	}
	return d
}
