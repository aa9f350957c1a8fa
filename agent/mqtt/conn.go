package mqtt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// Limits of the line.
const (
	// MaxPayload is the longest document sent or accepted, bytes.
	MaxPayload = 256 << 10
	// maxPacket leaves room for topic and properties.
	maxPacket    = MaxPayload + 4<<10
	writeTimeout = 30 * time.Second
)

var errPacket = errors.New("packet from the broker is too large or malformed")

// limitConn reads packet headers along with its user and cuts the line before a
// packet that would not fit, so that no peer decides how much memory we take. A
// write that hangs ends.
type limitConn struct {
	net.Conn
	left  int // bytes of the current packet's body still to come
	size  int // of the header being read
	shift int // -1: at the type byte
}

func newLimitConn(c net.Conn) *limitConn { return &limitConn{Conn: c, shift: -1} }

// Read implements net.Conn.
func (c *limitConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bad := c.scan(p[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}

// scan follows the fixed headers (MQTT 5, 2.1): a type byte, then the length in
// one to four groups of seven bits.
func (c *limitConn) scan(p []byte) error {
	for len(p) > 0 {
		if c.left > 0 {
			skip := min(c.left, len(p))
			c.left -= skip
			p = p[skip:]
			continue
		}
		b := p[0]
		p = p[1:]
		if c.shift < 0 {
			c.size, c.shift = 0, 0
			continue
		}
		c.size |= int(b&0x7f) << c.shift
		c.shift += 7
		switch {
		case c.size > maxPacket:
			return fmt.Errorf("%w: more than %d bytes", errPacket, maxPacket)
		case b&0x80 == 0:
			c.left, c.shift = c.size, -1
		case c.shift == 28:
			return fmt.Errorf("%w: length of more than four bytes", errPacket)
		}
	}
	return nil
}

// Write implements net.Conn.
func (c *limitConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// FullJitter returns waits drawn evenly from [0, w): w is base for attempt 0 and
// doubles up to widest. Spreading over the whole window is what lets a fleet
// come back after a broker's restart.
func FullJitter(base, widest time.Duration) func(attempt int) time.Duration {
	return func(attempt int) time.Duration {
		w := base
		for range attempt {
			if w = min(2*w, widest); w == widest {
				break
			}
		}
		return rand.N(w)
	}
}
