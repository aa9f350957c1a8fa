// Package brokertest is the conformance suite of mqtt.Broker: what otad relies
// on, and that no device gets at another one through the broker. Every adapter
// runs it, the external one together with a real broker.
//
// Its second part, RunProbes, is what any client may expect of a broker, in raw
// packets over TCP: order, flow control, nothing lost, time, malformed input. The
// embedded broker is judged by it, and a real Mosquitto runs it too, so that a
// probe that asks for too much is found out.
package brokertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/mqtt"
)

// Harness is one broker under test.
type Harness struct {
	// Broker has no subscription yet. The suite closes it.
	Broker mqtt.Broker
	// Dial opens a connection for a device with a certificate for the common
	// name cn; the suite then speaks MQTT 5 over it.
	Dial func(t *testing.T, cn string) (net.Conn, error)
	// AcksForHandler: the PUBACK that a device gets is the handler's. With an
	// external broker it is that of the broker, which owes the handler the
	// message from then on.
	AcksForHandler bool
	// Retains: devices may retain messages under their own topics.
	Retains bool
	// Restart kills the broker process and starts it again. Nil: there is none.
	Restart func()
}

// Filters match all that a device may send. With an external broker they also
// match what otad sends to devices, so that tests that answer use narrower ones,
// as otad does.
var Filters = []string{"$aws/things/+/#", "ota/+/#"}

// Run tests the contract. open returns a harness with a broker of its own.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"devices are isolated: publish", isolatedPublish},
		{"devices are isolated: subscribe", isolatedSubscribe},
		{"devices are isolated: will", isolatedWill},
		{"devices are isolated: client id", isolatedClientID},
		{"devices are isolated: names with wildcards", isolatedNames},
		{"oversize and retained publishes", refusedPublishes},
		{"acknowledged means done", ackAfterHandler},
		{"handler error", handlerError},
		{"order per device, devices concurrently", order},
		{"overlapping filters", overlappingFilters},
		{"topics that begin with a dollar", dollarTopics},
		{"request and response", requestResponse},
		{"close waits for handlers", closeWaits},
		{"use after close", useAfterClose},
		{"broker restart", restart},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t)
			t.Cleanup(func() { closeBroker(t, h.Broker) })
			c.test(t, h)
		})
	}
}

func closeBroker(t *testing.T, b mqtt.Broker) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- b.Close() }()
	if err := receive(t, done, "end of Close"); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (h Harness) subscribe(t *testing.T, handle mqtt.Handler, filters ...string) {
	t.Helper()
	if filters == nil {
		filters = Filters
	}
	ctx, cancel := context.WithCancel(context.Background()) // t.Context ends before Close
	t.Cleanup(cancel)
	if err := h.Broker.Subscribe(ctx, filters, handle); err != nil {
		t.Fatalf("subscribe: %v", err)
	}
}

func (h Harness) publish(t *testing.T, m mqtt.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Broker.Publish(ctx, m); err != nil {
		t.Fatalf("publish to %s: %v", m.Topic, err)
	}
}

// inbox collects what the handler gets.
type inbox struct {
	mu  sync.Mutex
	all []mqtt.Message
	new chan mqtt.Message
}

func newInbox() *inbox { return &inbox{new: make(chan mqtt.Message, 10_000)} }

func (i *inbox) handle(_ context.Context, m mqtt.Message) error {
	i.mu.Lock()
	i.all = append(i.all, m)
	i.mu.Unlock()
	i.new <- m
	return nil
}

// await reads until a message of that topic arrives.
func (i *inbox) await(t *testing.T, topic string) {
	t.Helper()
	for receive(t, i.new, "message of "+topic).Topic != topic {
	}
}

func (i *inbox) wantOnly(t *testing.T, allowed ...string) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range i.all {
		ok := false
		for _, a := range allowed {
			ok = ok || m.Topic == a
		}
		if !ok {
			t.Errorf("the handler got %q: %s", m.Topic, m.Payload)
		}
	}
}

// A device can make no message appear under any name but its own. What the
// victim sends afterwards shows that nothing forged is still on its way.
func isolatedPublish(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle, "$aws/things/+/#", "ota/#", "other/#", "/#")
	victim := h.connect(t, "victim")
	victim.mustSubscribe("ota/victim/#")
	for _, topic := range []string{
		"ota/victim/x", "$aws/things/victim/shadow/update", "ota/Mallory/x", "ota//x", "/ota/mallory/x",
		"other/x", "ota/mallory2/x", "ota/mallor/x", "ota", "$aws/things/", "$SYS/x", "ota/victim/mallory/x",
		"$share/g/ota/mallory/x",
	} {
		mallory, err := h.tryConnect(t, "mallory")
		if err != nil {
			t.Fatal(err)
		}
		if err := mallory.publish(topic, "forged"); err == nil {
			t.Errorf("a publish of mallory to %q was acknowledged", topic)
		}
		mallory.disconnect()
	}
	mallory := h.connect(t, "mallory")
	mallory.mustPublish("ota/mallory/own", "mine")
	in.await(t, "ota/mallory/own")
	victim.mustPublish("ota/victim/own", "mine")
	in.await(t, "ota/victim/own")
	in.wantOnly(t, "ota/mallory/own", "ota/victim/own")
	if m := victim.next(); m.Topic != "ota/victim/own" {
		t.Errorf("the victim got %q: %s", m.Topic, m.Payload)
	}
}

// A device gets no message meant for another one, whatever it subscribes to.
func isolatedSubscribe(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle)
	victim := h.connect(t, "victim")
	victim.mustSubscribe("ota/victim/#")
	mallory := h.connect(t, "mallory")
	filters := []string{
		"#", "+/#", "+/+/#", "$aws/#", "$aws/things/#", "$aws/things/+/#", "$aws/things/victim/#", "$aws/+/victim/#",
		"ota/#", "ota/+/#", "ota/+/cmd", "ota/victim/#", "ota/victim/cmd", "$SYS/#", "/#", "ota/mallory2/#",
		"$share/g/#", "$share/g/ota/victim/#", "$share/g/$aws/things/+/#", "$share/g/ota/mallory/#",
	}
	for _, f := range filters {
		_ = mallory.subscribe(f) // refused, or granted and then without effect
		if isClosed(mallory) {
			mallory = h.connect(t, "mallory")
		}
	}
	mallory.mustSubscribe("ota/mallory/end")
	victim.mustPublish("ota/victim/secret", "s")
	in.await(t, "ota/victim/secret")
	h.publish(t, mqtt.Message{Topic: "ota/victim/cmd", Payload: []byte("s"), QoS: 1})
	h.publish(t, mqtt.Message{Topic: "$aws/things/victim/jobs/notify", Payload: []byte("s"), QoS: 1})
	h.publish(t, mqtt.Message{Topic: "ota/mallory/end", QoS: 1})
	if m := mallory.next(); m.Topic != "ota/mallory/end" {
		t.Errorf("mallory got %q", m.Topic)
	}
	// They have two senders, so either may come first.
	got := []string{victim.next().Topic, victim.next().Topic}
	if slices.Sort(got); !slices.Equal(got, []string{"ota/victim/cmd", "ota/victim/secret"}) {
		t.Errorf("the victim got %q", got)
	}
}

func isClosed(d *device) bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

func isolatedWill(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle)
	for _, topic := range []string{"ota/victim/presence", "$aws/things/victim/shadow/update", "ota/mallory2/x"} {
		if d, err := h.tryConnect(t, "mallory", withWill(topic, "forged")); err == nil {
			d.crash()
		}
	}
	d := h.connect(t, "mallory", withWill("ota/mallory/presence", "gone"))
	d.crash()
	in.await(t, "ota/mallory/presence")
	h.connect(t, "victim").mustPublish("ota/victim/own", "mine")
	in.await(t, "ota/victim/own")
	in.wantOnly(t, "ota/mallory/presence", "ota/victim/own")
}

// A client id that is not its own gets a device neither the session nor the
// messages of another one, and does not end its connection.
func isolatedClientID(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle)
	victim := h.connect(t, "victim")
	victim.mustSubscribe("ota/victim/#")
	if mallory, err := h.tryConnect(t, "mallory", withClientID("victim")); err == nil {
		_ = mallory.subscribe("ota/victim/#")
		h.publish(t, mqtt.Message{Topic: "ota/victim/cmd", QoS: 1})
		_ = mallory.subscribe("ota/mallory/#")
		h.publish(t, mqtt.Message{Topic: "ota/mallory/end", QoS: 1})
		if m := mallory.next(); m.Topic != "ota/mallory/end" {
			t.Errorf("mallory got %q", m.Topic)
		}
		victim.next()
	}
	victim.mustPublish("ota/victim/own", "mine")
	in.await(t, "ota/victim/own")
	if isClosed(victim) {
		t.Error("the victim lost its connection")
	}
}

// A certificate for a name with a wildcard, which otad's authority would not
// issue, opens nothing.
func isolatedNames(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle, "ota/+/own", "ota/+/x")
	victim := h.connect(t, "victim")
	for _, cn := range []string{"+", "#", "vic+", "vic#im"} {
		d, err := h.tryConnect(t, cn)
		if err != nil {
			continue
		}
		_ = d.subscribe("ota/" + cn + "/#")
		_ = d.subscribe("$aws/things/" + cn + "/#")
		victim.mustPublish("ota/victim/own", "mine")
		h.publish(t, mqtt.Message{Topic: "ota/victim/cmd", QoS: 1})
		_ = d.publish("ota/victim/x", "forged")
		select {
		case m := <-d.got:
			t.Errorf("%q got %q", cn, m.Topic)
		default:
		}
	}
	victim.mustPublish("ota/victim/own", "mine")
	in.await(t, "ota/victim/own")
	in.wantOnly(t, "ota/victim/own")
}

func refusedPublishes(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle)
	refused := map[string]packets.Publish{"oversize": {Topic: "ota/dev/big", QoS: 1, PacketID: 1, Payload: make([]byte, 300<<10)}}
	if !h.Retains {
		refused["retained"] = packets.Publish{Topic: "ota/dev/retained", QoS: 1, PacketID: 1, Payload: []byte("x"), Retain: true}
	}
	for name, p := range refused {
		r := h.raw(t, "dev")
		r.publish(p)
		r.wantEnd(name)
	}
	d := h.connect(t, "dev")
	d.mustPublish("ota/dev/large", string(make([]byte, 200<<10)))
	in.await(t, "ota/dev/large")
	in.wantOnly(t, "ota/dev/large")
}

func ackAfterHandler(t *testing.T, h Harness) {
	entered, release := make(chan struct{}), make(chan struct{})
	h.subscribe(t, func(_ context.Context, m mqtt.Message) error {
		if m.Topic == "ota/slow/x" {
			close(entered)
			<-release
		}
		return nil
	})
	slow, quick := h.connect(t, "slow"), h.connect(t, "quick")
	acked := make(chan error, 1)
	go func() { acked <- slow.publish("ota/slow/x", "1") }()
	receive(t, entered, "call of the handler")
	for range 20 { // other devices are not held up, and give a wrong ack time to come
		quick.mustPublish("ota/quick/x", "1")
	}
	select {
	case <-acked:
		if h.AcksForHandler {
			t.Error("acknowledged before the handler returned")
		}
		acked <- nil
	default:
	}
	close(release)
	if err := receive(t, acked, "PUBACK"); err != nil {
		t.Error(err)
	}
}

// What the handler did not take comes again: from the device, which got no
// success, or from the broker in between.
func handlerError(t *testing.T, h Harness) {
	var mu sync.Mutex
	calls := map[string]int{}
	taken := make(chan string, 100)
	h.subscribe(t, func(_ context.Context, m mqtt.Message) error {
		mu.Lock()
		defer mu.Unlock()
		key := string(m.Payload)
		calls[key]++
		if calls[key] < 3 {
			return errors.New("database is away")
		}
		taken <- key
		return nil
	})
	for _, payload := range []string{"first", "second"} {
		sent := 0
		for acked := false; !acked; sent++ {
			d := h.connect(t, "dev")
			acked = d.publish("ota/dev/x", payload) == nil
			d.disconnect()
		}
		if h.AcksForHandler && sent != 3 {
			t.Errorf("acknowledged after %d attempts, want 3", sent)
		}
		if got := receive(t, taken, "message again"); got != payload {
			t.Errorf("took %q, want %q", got, payload)
		}
	}
}

func order(t *testing.T, h Harness) {
	const devices, each = 5, 100
	var mu sync.Mutex
	next := map[string]int{}
	running := map[string]bool{}
	left := devices * each
	done := make(chan struct{})
	blocked, release := make(chan struct{}), make(chan struct{})
	h.subscribe(t, func(_ context.Context, m mqtt.Message) error {
		if m.Topic == "ota/blocked/x" {
			close(blocked)
			<-release
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if want := fmt.Sprint(next[m.Topic]); string(m.Payload) != want {
			t.Errorf("%s: message %s, want %s", m.Topic, m.Payload, want)
		}
		if running[m.Topic] {
			t.Errorf("%s: two handlers at once", m.Topic)
		}
		running[m.Topic] = true
		mu.Unlock()
		mu.Lock()
		running[m.Topic] = false
		next[m.Topic]++
		if left--; left == 0 {
			close(done)
		}
		return nil
	})
	stuck := h.connect(t, "blocked")
	var wg sync.WaitGroup
	wg.Go(func() { _ = stuck.publish("ota/blocked/x", "") })
	receive(t, blocked, "blocked handler")
	for i := range devices {
		d := h.connect(t, fmt.Sprintf("dev-%d", i))
		wg.Go(func() {
			for n := range each {
				if err := d.publish("ota/"+d.id+"/x", fmt.Sprint(n)); err != nil {
					t.Errorf("%s: %v", d.id, err)
				}
			}
		})
	}
	receive(t, done, "last message")
	close(release)
	wg.Wait()
}

func overlappingFilters(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle, "ota/+/x", "ota/#", "ota/+/#", "ota/dev/x")
	d := h.connect(t, "dev")
	for _, topic := range []string{"ota/dev/x", "ota/dev/y", "ota/dev/x", "ota/dev/end"} {
		d.mustPublish(topic, "")
	}
	in.await(t, "ota/dev/end")
	d.mustPublish("ota/dev/end2", "")
	in.await(t, "ota/dev/end2")
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.all) != 5 {
		t.Errorf("handed over %d messages, want 5", len(in.all))
	}
}

// The topics that devices really use: brokers treat a leading $ in ways of
// their own, above all in shared subscriptions.
func dollarTopics(t *testing.T, h Harness) {
	in := newInbox()
	h.subscribe(t, in.handle, "$aws/things/+/shadow/update", "$aws/things/+/jobs/+/get")
	d := h.connect(t, "dev")
	for _, topic := range []string{"$aws/things/dev/shadow/update", "$aws/things/dev/jobs/$next/get"} {
		d.mustPublish(topic, "{}")
		in.await(t, topic)
	}
}

// A handler answers from within, with the properties of MQTT 5.
func requestResponse(t *testing.T, h Harness) {
	seen := make(chan mqtt.Message, 10)
	h.subscribe(t, func(ctx context.Context, m mqtt.Message) error {
		seen <- m
		return h.Broker.Publish(ctx, mqtt.Message{
			Topic: m.ResponseTopic, Payload: append([]byte("re: "), m.Payload...), QoS: 1,
			CorrelationData: m.CorrelationData, ResponseTopic: "ota/dev/thanks", Expiry: time.Minute,
		})
	}, "ota/+/ask")
	d := h.connect(t, "dev")
	d.mustSubscribe("ota/dev/reply/+")
	for i := range 3 {
		expiry := uint32(60)
		_, err := d.cli.Publish(t.Context(), &paho.Publish{
			Topic: "ota/dev/ask", Payload: []byte("q"), QoS: byte(i % 2),
			Properties: &paho.PublishProperties{
				ResponseTopic: fmt.Sprintf("ota/dev/reply/%d", i), CorrelationData: []byte{0, byte(i)}, MessageExpiry: &expiry,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if m := receive(t, seen, "request"); m.Topic != "ota/dev/ask" || m.Expiry <= 0 || m.Expiry > time.Minute || m.QoS != byte(i%2) {
			t.Errorf("the handler got %+v", m)
		}
		m := d.next()
		if m.Topic != fmt.Sprintf("ota/dev/reply/%d", i) || string(m.Payload) != "re: q" || string(m.Properties.CorrelationData) != string([]byte{0, byte(i)}) ||
			m.Properties.ResponseTopic != "ota/dev/thanks" || m.Properties.MessageExpiry == nil || *m.Properties.MessageExpiry > 60 || m.Retain {
			t.Errorf("the device got %+v, %+v", m, m.Properties)
		}
	}
}

func closeWaits(t *testing.T, h Harness) {
	entered, release, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h.subscribe(t, func(ctx context.Context, _ mqtt.Message) error {
		close(entered)
		<-release
		if ctx.Err() != nil {
			t.Error("Close cancelled a running handler")
		}
		close(returned)
		return nil
	})
	d := h.connect(t, "dev")
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.publish("ota/dev/x", "") })
	receive(t, entered, "call of the handler")
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- h.Broker.Close() }()
	}
	receive(t, d.closedOr(h), "end of the connection")
	select {
	case <-closed:
		t.Error("Close returned while a handler ran")
		closed <- nil
	default:
	}
	close(release)
	for range 2 {
		if err := receive(t, closed, "end of Close"); err != nil {
			t.Error(err)
		}
		select {
		case <-returned:
		default:
			t.Error("Close returned before the handler")
		}
	}
	d.disconnect()
	wg.Wait()
}

// closedOr is a channel that tells that Close is under way, as far as a device
// can see it: with an external broker it cannot.
func (d *device) closedOr(h Harness) <-chan struct{} {
	if h.AcksForHandler {
		return d.closed
	}
	now := make(chan struct{})
	close(now)
	return now
}

func useAfterClose(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Broker.Publish(ctx, mqtt.Message{Topic: "ota/dev/x", QoS: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("publish with a cancelled context: %v", err)
	}
	for _, m := range []mqtt.Message{{Topic: ""}, {Topic: "ota/+/x"}, {Topic: "ota/#"}, {Topic: "ota/dev/x", QoS: 2}, {Topic: "ota/dev/x", Payload: make([]byte, 300<<10)}} {
		if err := h.Broker.Publish(t.Context(), m); err == nil {
			t.Errorf("publish to %q with QoS %d succeeded", m.Topic, m.QoS)
		}
	}
	for range 2 {
		if err := h.Broker.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := h.Broker.Publish(t.Context(), mqtt.Message{Topic: "ota/dev/x", QoS: 1}); err == nil {
		t.Error("publish after Close succeeded")
	}
	if err := h.Broker.Subscribe(t.Context(), Filters, newInbox().handle); err == nil {
		t.Error("subscribe after Close succeeded")
	}
}

// After the broker died and came back, both directions work again without help.
func restart(t *testing.T, h Harness) {
	if h.Restart == nil {
		return
	}
	in := newInbox()
	h.subscribe(t, in.handle)
	h.connect(t, "dev").mustPublish("ota/dev/before", "")
	in.await(t, "ota/dev/before")
	h.Restart()
	d := h.connect(t, "dev")
	d.mustSubscribe("ota/dev/cmd")
	h.publish(t, mqtt.Message{Topic: "ota/dev/cmd", QoS: 1}) // waits for the connection
	d.next()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the subscription comes back a moment later than the connection
		for n := 0; !isDone(stop); n++ {
			_ = d.publish("ota/dev/after", fmt.Sprint(n))
		}
	})
	in.await(t, "ota/dev/after")
	close(stop)
	wg.Wait()
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
