package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"github.com/otad/otad/internal/testserver"
)

// Who may be silent by its version of MQTT is asked by TCP.
func TestSilentOldClientsAreAskedByTCP(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, nil, func(c *Config) { c.PlainAddr, c.Authenticate = "127.0.0.1:0", openToAll })
	for _, c := range []struct {
		v5        bool
		keepAlive uint16
		asked     bool
	}{
		{false, 0, true}, {false, 65535, true}, {false, 1201, true}, {false, 1200, false},
		{true, 0, false}, {true, 65535, false},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("v5=%v keep alive %d TLS=%v", c.v5, c.keepAlive, secure), func(t *testing.T) {
				var w *wire
				if secure {
					w = dialTLS(t, b, pki, "dev")
				} else {
					w = dialPlain(t, b)
				}
				w.v5 = c.v5
				if code, _ := w.connect(hello{id: t.Name(), keepAlive: c.keepAlive}); code != 0 {
					t.Fatalf("code 0x%02x", code)
				}
				on, idle, err := keepAliveOf(b, w.nc.LocalAddr())
				if err != nil || on != c.asked {
					t.Fatalf("asked by TCP: %v, want %v; %v", on, c.asked, err)
				}
				if on && idle != int(DefaultKeepAlive.Seconds()) {
					t.Errorf("after %d s", idle)
				}
			})
		}
	}
}

// keepAliveOf asks the kernel about the broker's connection to a client.
func keepAliveOf(b *Broker, client net.Addr) (on bool, idle int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for nc := range b.conns {
		if nc.RemoteAddr().String() != client.String() {
			continue
		}
		if t, ok := nc.(*tls.Conn); ok {
			nc = t.NetConn()
		}
		raw, err := nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			return false, 0, err
		}
		var of [2]int
		var errs [2]error
		err = raw.Control(func(fd uintptr) {
			of[0], errs[0] = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
			of[1], errs[1] = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		})
		return of[0] != 0, of[1], errors.Join(err, errs[0], errs[1])
	}
	return false, 0, errors.New("no such connection")
}
