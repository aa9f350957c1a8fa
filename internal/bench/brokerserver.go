package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/testserver"
)

// brokerServer is one broker process.
type brokerServer struct {
	name    string
	plain   string // host:port
	tls     string
	process *process
}

// brokers are ours and the peer.
type brokers struct {
	r         *runner
	site      *site
	otad      *brokerServer
	mosquitto *brokerServer
}

func (b *brokers) both() []*brokerServer { return []*brokerServer{b.otad, b.mosquitto} }

func (b *brokers) stop() {
	if b.mosquitto != nil {
		b.mosquitto.process.stop()
	}
	b.site.stop()
}

func (r *runner) newBrokers(args ...string) (_ *brokers, err error) {
	plain, err := testserver.FreeAddr()
	if err != nil {
		return nil, err
	}
	b := &brokers{r: r}
	if b.site, err = r.newOperatedSite("broker", append(args, "--mqtt-plain", plain, "--mqtt-plain-auth", "none")...); err != nil {
		return nil, err
	}
	at, err := hostOf(b.site.at.MQTT)
	if err == nil {
		b.otad = &brokerServer{name: "otad", plain: plain, tls: at, process: b.site.server}
		b.mosquitto, err = b.startMosquitto()
	}
	if err != nil {
		b.stop()
		return nil, err
	}
	return b, nil
}

// hostOf is the host:port of a URL.
func hostOf(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}

// startMosquitto gives the peer a certificate of the same authority, no log, no
// limit that the loads reach, and TCP_NODELAY, without which it waits.
func (b *brokers) startMosquitto() (*brokerServer, error) {
	bin := "mosquitto"
	if _, err := exec.LookPath(bin); err != nil {
		bin = "/usr/sbin/mosquitto" // where Debian puts it, on no user's PATH
	}
	s := &brokerServer{name: "mosquitto"}
	var err error
	if s.plain, err = testserver.FreeAddr(); err != nil {
		return nil, err
	}
	if s.tls, err = testserver.FreeAddr(); err != nil {
		return nil, err
	}
	dir := b.site.path("mosquitto")
	out, err := exec.CommandContext(b.r.ctx, filepath.Join(b.r.bin, "otad"), "broker", "cert", "--data", b.site.path("server"),
		"--hosts", "localhost,127.0.0.1", "--out", dir).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("otad broker cert: %w: %s", err, out)
	}
	lines := []string{
		"per_listener_settings true", "persistence false", "log_dest none", "set_tcp_nodelay true",
		"max_inflight_messages 1000", "max_queued_messages 0", "max_packet_size 262144",
	}
	if os.Geteuid() == 0 {
		lines = append(lines, "user root")
	}
	host, port, _ := strings.Cut(s.plain, ":")
	lines = append(lines, "listener "+port+" "+host, "allow_anonymous true")
	host, port, _ = strings.Cut(s.tls, ":")
	lines = append(lines, "listener "+port+" "+host, "allow_anonymous false", "require_certificate true",
		"use_identity_as_username true", "use_username_as_clientid true",
		"cafile "+filepath.Join(dir, "ca.pem"), "certfile "+filepath.Join(dir, "broker.pem"), "keyfile "+filepath.Join(dir, "broker.key"))
	conf := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	if s.process, err = start(filepath.Join(dir, "log"), bin, "-c", conf); err != nil {
		return nil, err
	}
	return s, b.r.listening(s)
}

// listening waits for the plain listener.
func (r *runner) listening(s *brokerServer) error {
	err := r.until(s.name+" to listen", 20*time.Millisecond, func() (bool, error) {
		nc, err := net.DialTimeout("tcp", s.plain, time.Second)
		if err != nil {
			return false, s.process.ended()
		}
		return true, nc.Close()
	})
	if err != nil {
		s.process.stop()
	}
	return err
}

// sinkArgument makes this program the broker of startSink.
const sinkArgument = "broker-sink"

// startSink is the embedded broker in a process of its own whose handler takes
// everything: what a message costs before otad does anything with it.
func (r *runner) startSink() (*brokerServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &brokerServer{name: "otad's broker"}
	if s.plain, err = testserver.FreeAddr(); err != nil {
		return nil, err
	}
	if s.process, err = start(r.path("sink.log"), self, sinkArgument, s.plain); err != nil {
		return nil, err
	}
	return s, r.listening(s)
}

// serveSink is that process; it runs until it is told to stop.
func serveSink(ctx context.Context, addr string) error {
	b, err := broker.New(ctx, broker.Config{
		PlainAddr: addr,
		Authenticate: func(context.Context, broker.Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: "bench", Access: mqtt.OpenAccess()}, nil
		},
	})
	if err != nil {
		return err
	}
	err = b.Subscribe(ctx, []string{"bench/#"}, func(context.Context, mqtt.Message) error { return nil })
	if err == nil {
		<-ctx.Done()
	}
	return errors.Join(err, b.Close())
}

// dialer spreads connections over loopback addresses, so that neither ports nor
// limits of one address are in the way.
type dialer struct {
	addr string
	tls  *tls.Config // nil: plain
}

const perSourceAddress = 5000

// bindLate lets the kernel choose the port when it knows the other end, among those
// that are free for that. Otherwise it looks for one that nobody used lately, and
// that search, not the broker, is what a connect takes.
func bindLate(_, _ string, c syscall.RawConn) error {
	var late error
	err := c.Control(func(fd uintptr) { late = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, bindAddressNoPort, 1) })
	return errors.Join(err, late)
}

const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT

func (d dialer) dial(ctx context.Context, n int) (net.Conn, error) {
	nd := &net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(1+n/perSourceAddress))},
		Control:   bindLate,
	}
	if d.tls != nil {
		return (&tls.Dialer{NetDialer: nd, Config: d.tls}).DialContext(ctx, "tcp", d.addr)
	}
	return nd.DialContext(ctx, "tcp", d.addr)
}
