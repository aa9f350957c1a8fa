package broker

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/otad/otad/internal/mqtt/packet"
)

// frames cuts a stream into packets. An idle connection holds a small buffer; a
// busy one borrows a large one; a packet that is larger still gets memory as its
// bytes come in, not as its header promises.
type frames struct {
	small [smallBuffer]byte
	buf   []byte
	r, w  int
	large *[]byte // borrowed, nil: none
}

const (
	smallBuffer = 256
	largeBuffer = 16 << 10
)

var largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}

// next returns the next packet if it has been read. Its body is good until the
// next call.
func (f *frames) next(lim *Limits) (h packet.Header, body []byte, ok bool, err error) {
	h, n, err := packet.ParseHeader(f.buf[f.r:f.w])
	if err != nil || n == 0 {
		return h, nil, false, err
	}
	if n+h.Size > lim.PacketBytes {
		return h, nil, false, &packet.Error{Code: packet.PacketTooLarge, Text: fmt.Sprintf("packet of %d bytes; at most %d: send less at a time", n+h.Size, lim.PacketBytes) + lim.raise("packet-bytes")}
	}
	if f.w-f.r < n+h.Size {
		return h, nil, false, nil
	}
	body = f.buf[f.r+n : f.r+n+h.Size]
	f.r += n + h.Size
	return h, body, true, nil
}

// fill reads once.
func (f *frames) fill(nc net.Conn) error {
	f.makeRoom()
	n, err := nc.Read(f.buf[f.w:])
	f.w += n
	if n > 0 {
		return nil
	}
	return err
}

func (f *frames) makeRoom() {
	if f.buf == nil {
		f.buf = f.small[:]
	}
	if f.r == f.w {
		if f.w < smallBuffer { // the last read was a small one
			f.release()
		}
		f.r, f.w = 0, 0
	}
	if f.w < len(f.buf) && f.r == 0 {
		return
	}
	if f.r > 0 {
		f.w = copy(f.buf, f.buf[f.r:f.w])
		f.r = 0
		if f.w < len(f.buf)/2 {
			return
		}
	}
	f.grow()
}

// grow doubles the buffer or borrows the large one.
func (f *frames) grow() {
	if f.large == nil && len(f.buf) < largeBuffer {
		f.large = largeBuffers.Get().(*[]byte)
		copy(*f.large, f.buf[:f.w])
		f.buf = *f.large
		return
	}
	bigger := make([]byte, 2*len(f.buf))
	copy(bigger, f.buf[:f.w])
	f.giveBack()
	f.buf = bigger
}

func (f *frames) giveBack() {
	if f.large != nil {
		largeBuffers.Put(f.large)
		f.large = nil
	}
}

func (f *frames) release() {
	f.giveBack()
	f.buf = f.small[:]
}

// deadline sets the time by which the client must have sent something (3.1.2.10),
// not more often than it matters.
type deadline struct {
	idle time.Duration // 0: none
	set  time.Time
}

func (d *deadline) extend(nc net.Conn) error {
	if d.idle == 0 {
		return nil
	}
	now := time.Now()
	if now.Sub(d.set) < d.idle/16 {
		return nil
	}
	d.set = now
	return nc.SetReadDeadline(now.Add(d.idle + d.idle/16))
}
