package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The broker benchmark: the embedded broker of an otad process and a mosquitto
// process, one after the other in every round, under the same client program.
const (
	brokerRounds  = 5
	brokerWarmUp  = 500 * time.Millisecond
	brokerTime    = 2 * time.Second
	brokerPayload = 256
	// flood is how far a QoS 0 publisher may be ahead of its subscriber: none of
	// the brokers then drops anything, and what is measured arrives.
	flood = 200
	// brokerReceive is the Receive Maximum of subscribers.
	brokerReceive = 64
	// What the project wants, as a share of mosquitto.
	clientTarget    = 0.7
	inProcessTarget = 1.0
)

// traffic is one kind of load.
type traffic struct {
	name        string
	publishers  int
	subscribers int
	qos         byte
	window      int // unacknowledged, or undelivered, messages of one publisher
	filter      func(subscriber int) string
	topic       func(publisher int) string
	// acks: what counts is PUBACKs to publishers, not deliveries.
	acks   bool
	target float64 // ratio to mosquitto
}

func pairTopic(i int) string { return fmt.Sprintf("bench/pair/%d", i) }

func fanTopic(i int) string { return fmt.Sprintf("bench/fan/%d", i) }

var brokerTraffic = []traffic{
	{name: "QoS 0, 10 to 10", publishers: 10, subscribers: 10, window: flood, filter: pairTopic, topic: pairTopic, target: clientTarget},
	{name: "QoS 1, 10 to 10, window 20", publishers: 10, subscribers: 10, qos: 1, window: 20, filter: pairTopic, topic: pairTopic, target: clientTarget},
	{
		name: "QoS 1, fan-in 20 to 1, window 20", publishers: 20, subscribers: 1, qos: 1, window: 20,
		filter: func(int) string { return "bench/fan/#" }, topic: fanTopic, target: clientTarget,
	},
	{
		name: "QoS 1, shared 20 to 4, window 20", publishers: 20, subscribers: 4, qos: 1, window: 20,
		filter: func(int) string { return "$share/bench/bench/fan/#" }, topic: fanTopic, target: clientTarget,
	},
}

// sinkTraffic is the way in: publish to PUBACK. otad's handler is the taker here,
// and one subscriber on mosquitto.
var sinkTraffic = traffic{
	name: "QoS 1, 20 publishers to PUBACK, window 20", publishers: 20, qos: 1, window: 20, topic: fanTopic,
	filter: func(int) string { return "bench/fan/#" }, acks: true, target: inProcessTarget,
}

// unlimited is a section on brokers whose rates nothing in it reaches; limited is one
// with otad as it is by default.
func unlimited(part func(*brokers) error) func(*runner) error {
	return func(r *runner) error {
		return r.withBrokers(part, "--mqtt-limit", "packet-rate=1000000000,byte-rate=1000000000,connect-rate=1000000000,failure-rate=1000000000")
	}
}

func limited(part func(*brokers) error) func(*runner) error {
	return func(r *runner) error { return r.withBrokers(part) }
}

// withBrokers runs a part on brokers of its own: what one load has freed would hide
// what a connection takes in another.
func (r *runner) withBrokers(part func(*brokers) error, args ...string) error {
	if err := raiseFiles(); err != nil {
		return err
	}
	b, err := r.newBrokers(args...)
	if err != nil {
		return err
	}
	defer b.stop()
	return part(b)
}

// outcome is what one run of a load gave.
type outcome struct {
	perSecond float64
	cpu       float64 // microseconds of the broker for a message
}

func (b *brokers) throughput() error {
	for _, t := range brokerTraffic {
		if !strings.Contains(t.name, b.r.row) {
			continue
		}
		if err := b.compare(t, b.both(), func(s *brokerServer) traffic { return t }); err != nil {
			return err
		}
	}
	return nil
}

// inProcess measures a handler in the process of the broker against a subscriber
// on mosquitto.
func (b *brokers) inProcess() error {
	sink, err := b.r.startSink()
	if err != nil {
		return err
	}
	defer sink.process.stop()
	return b.compare(sinkTraffic, []*brokerServer{sink, b.mosquitto}, func(s *brokerServer) traffic {
		t := sinkTraffic
		if s == b.mosquitto {
			t.subscribers = 1
		}
		return t
	})
}

// compare runs the load on ours and then on the peer, again and again, and adds
// the medians.
func (b *brokers) compare(t traffic, servers []*brokerServer, of func(*brokerServer) traffic) error {
	var runs [2][]outcome
	for range b.r.rounds {
		for i, s := range servers {
			o, err := b.r.runTraffic(s, of(s))
			if err != nil {
				return fmt.Errorf("%s on %s: %w", t.name, s.name, err)
			}
			runs[i] = append(runs[i], o)
		}
	}
	ours, peer := summary(runs[0]), summary(runs[1])
	ratio := ours.perSecond / peer.perSecond
	b.r.table.add(figure{
		what:     "Broker: " + t.name,
		measured: fmt.Sprintf("%.0f/s, %.1f us of the broker each", ours.perSecond, ours.cpu),
		target:   fmt.Sprintf(">= %.1fx", t.target), met: ratio >= t.target,
		peer: fmt.Sprintf("%.2fx mosquitto (%.0f/s, %.1f us)", ratio, peer.perSecond, peer.cpu),
	})
	b.r.say("%s: %.0f/s (%.1f us), mosquitto %.0f/s (%.1f us)", t.name, ours.perSecond, ours.cpu, peer.perSecond, peer.cpu)
	return nil
}

func summary(runs []outcome) outcome {
	var perSecond, cpu []float64
	for _, o := range runs {
		perSecond, cpu = append(perSecond, o.perSecond), append(cpu, o.cpu)
	}
	return outcome{median(perSecond), median(cpu)}
}

func percentile(times []time.Duration, p int) time.Duration {
	slices.Sort(times)
	return times[min(len(times)*p/100, len(times)-1)]
}
