package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"

	"github.com/otad/otad/internal/fleet"
)

// MaxBlocksInFlight is how many blocks of streams are on their way to a device
// at a time: those of one request of the smallest blocks. The device's next
// request waits for the end of the one before.
const MaxBlocksInFlight = MaxStreamAnswer / MinStreamBlock

// streamID is what the protocol allows for one.
var streamID = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)

// stream answers a describe or a get. Faults of the storage are answered too,
// since a device asks for what it missed anyway; nothing is ever changed here.
func (p *Endpoint) stream(ctx context.Context, r request, m Message) error {
	f := wireFormats[r.format]
	req, fault := decodeStream(f, m.Payload)
	var err error
	switch {
	case fault != nil:
		err = fault
	case !streamID.MatchString(r.name):
		err = streamFaultf(streamInvalidTopic, "a stream has the id of its job")
	case r.op == "describe":
		err = p.describe(ctx, r, m, f, req)
	default:
		err = p.blocks(ctx, r, m, f, req)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	return p.rejectStream(ctx, r, m, req.ClientToken, p.streamFault(r, err))
}

func (p *Endpoint) rejectStream(ctx context.Context, r request, m Message, token string, why *streamFault) error {
	topic := streamPrefix(r.device, r.name) + "rejected/" + r.format
	return p.replyStream(ctx, m, m.QoS, wireFormats[r.format], topic, streamRejected{why.code, why.message, token})
}

func (p *Endpoint) streamFault(r request, err error) *streamFault {
	var fault *streamFault
	switch {
	case errors.As(err, &fault):
		return fault
	case errors.Is(err, fleet.ErrNotFound):
		return streamFaultf(streamNotFound, "%v", err)
	case errors.Is(err, fleet.ErrDenied):
		return streamFaultf(streamUnauthorized, "%v", err)
	}
	p.log.Error("stream failed", "device", r.device, "stream", r.name, "error", err)
	return streamFaultf(streamInternal, "the server can not read the file now; ask again later")
}

func (p *Endpoint) describe(ctx context.Context, r request, m Message, f wireFormat, req streamRequest) error {
	title, files, err := p.fleet.StreamFiles(ctx, r.device, r.name)
	if err != nil {
		return err
	}
	d := streamDescription{ClientToken: req.ClientToken, Version: streamVersion, Description: title, Files: []streamFileEntry{}}
	for _, file := range files {
		d.Files = append(d.Files, streamFileEntry{file.ID, file.Size})
	}
	return p.replyStream(ctx, m, m.QoS, f, streamPrefix(r.device, r.name)+"description/"+f.name, d)
}

// blocks sends what a get asks for. Blocks go with QoS 0 whatever the request
// had: a lost one is asked for again by bitmap, and nothing piles up for a device
// that takes none.
func (p *Endpoint) blocks(ctx context.Context, r request, m Message, f wireFormat, req streamRequest) error {
	if fault := req.validate(); fault != nil {
		return fault
	}
	if err := p.turns.take(ctx, r.device); err != nil {
		return err
	}
	defer p.turns.leave(r.device)
	if *req.File < 0 || *req.File > fleet.MaxStreamFile {
		return streamFaultf(streamInvalidRequest, "f is %d: want 0 to %d", *req.File, fleet.MaxStreamFile)
	}
	file, err := p.fleet.StreamFile(ctx, r.device, r.name, int(*req.File))
	if err != nil {
		return err
	}
	list, fault := req.blocks(file.Size)
	if fault != nil {
		return fault
	}
	topic := streamPrefix(r.device, r.name) + "data/" + f.name
	for len(list) > 0 {
		n := neighbours(list)
		data, err := readBlocks(ctx, file, list[0]**req.BlockSize, int64(n)**req.BlockSize)
		if err != nil {
			return err
		}
		for i := range n {
			block := data[:min(int64(len(data)), *req.BlockSize)]
			data = data[len(block):]
			out := streamBlock{req.ClientToken, file.ID, len(block), list[i], block}
			if err := p.replyStream(ctx, m, 0, f, topic, out); err != nil {
				return err
			}
		}
		list = list[n:]
	}
	return nil
}

// neighbours is how many blocks at the front of the list follow each other: they
// are read at once.
func neighbours(list []int64) int {
	n := 1
	for n < len(list) && list[n] == list[n-1]+1 {
		n++
	}
	return n
}

// readBlocks reads up to length bytes; only the end of the file makes it less.
func readBlocks(ctx context.Context, f fleet.StreamFile, offset, length int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	data := make([]byte, min(length, f.Size-offset))
	n, err := f.ReadAt(ctx, data, offset)
	if n < len(data) {
		return nil, fmt.Errorf("file %d: %d bytes at %d, %d expected: %w", f.ID, n, offset, len(data), errors.Join(err, io.ErrUnexpectedEOF))
	}
	return data, nil
}

func (p *Endpoint) replyStream(ctx context.Context, m Message, qos byte, f wireFormat, topic string, answer any) error {
	b, err := f.encode(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return p.broker.Reply(ctx, m, Message{Topic: topic, Payload: b, QoS: qos, CorrelationData: m.CorrelationData})
}

// turns lets one request of each device through at a time.
type turns struct {
	mu   sync.Mutex
	busy map[string]*turn
}

// turn is the place of one device.
type turn struct {
	slot chan struct{} // capacity 1
	refs int           // who holds or waits; guarded by turns.mu
}

// take waits until the device's turn is free.
func (t *turns) take(ctx context.Context, device string) error {
	t.mu.Lock()
	if t.busy == nil {
		t.busy = map[string]*turn{}
	}
	place := t.busy[device]
	if place == nil {
		place = &turn{slot: make(chan struct{}, 1)}
		t.busy[device] = place
	}
	place.refs++
	t.mu.Unlock()
	select {
	case place.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		t.drop(device, place)
		return ctx.Err()
	}
}

// leave gives the turn on; it follows a take that returned nil.
func (t *turns) leave(device string) {
	t.mu.Lock()
	place := t.busy[device]
	t.mu.Unlock()
	<-place.slot
	t.drop(device, place)
}

func (t *turns) drop(device string, place *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if place.refs--; place.refs == 0 {
		delete(t.busy, device)
	}
}
