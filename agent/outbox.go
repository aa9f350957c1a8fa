package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"sync"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/ota"
)

// Limits of the outbox.
const (
	// MaxPending is how many undelivered reports are kept; then the oldest
	// progress report goes, and a verdict only when there is nothing else.
	MaxPending = 256
	// maxOutboxBytes is when the file is rewritten with what is still needed.
	maxOutboxBytes = 256 << 10
	// maxOutboxFile bounds what is read back: MaxPending reports of the largest
	// size and one more.
	maxOutboxFile = 4 << 20
)

// outbox is the queue of reports on the disk: an append-only file of lines, each
// a CRC32C in eight hex digits, a space, and a JSON entry: a report, or an
// acknowledgement that moves the cursor. A torn last line is as if it had not
// been written. Safe for concurrent use.
type outbox struct {
	fsys disk.FS
	dir  string
	// added receives a value when there is something to deliver.
	added chan struct{}

	mu      sync.Mutex
	f       disk.File
	size    int64
	pending []Report
	next    int64            // sequence of the next report
	cursor  int64            // every report up to this sequence is delivered
	judged  map[string]int64 // (job, attempt) -> sequence of its verdict
}

// outboxEntry is one line; exactly one field is set.
type outboxEntry struct {
	Report *Report     `json:"r,omitempty"`
	Ack    int64       `json:"a,omitempty"` // every report up to this sequence is delivered
	Head   *outboxHead `json:"h,omitempty"` // first line of a rewritten file
}

type outboxHead struct {
	Next   int64            `json:"next"`
	Judged map[string]int64 `json:"judged,omitempty"`
}

func openOutbox(fsys disk.FS, dir string) (*outbox, error) {
	o := &outbox{fsys: fsys, dir: dir, added: make(chan struct{}, 1), next: 1, judged: map[string]int64{}}
	if err := o.open(); err != nil {
		return nil, fmt.Errorf("open outbox: %w", err)
	}
	b, err := disk.ReadFile(fsys, o.path(), maxOutboxFile)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read outbox: %w", err), o.f.Close())
	}
	valid := o.replay(b)
	if valid < int64(len(b)) {
		if err := errors.Join(o.f.Truncate(valid), o.f.Sync()); err != nil {
			return nil, errors.Join(fmt.Errorf("repair outbox: %w", err), o.f.Close())
		}
	}
	o.size = valid
	o.kick()
	return o, nil
}

func (o *outbox) path() string { return o.dir + "/outbox" }

func (o *outbox) open() error {
	f, err := o.fsys.OpenFile(o.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	o.f = f
	return o.fsys.SyncDir(o.dir)
}

// replay applies the lines of a file and returns the length of those that are
// whole.
func (o *outbox) replay(b []byte) int64 {
	valid := 0
	for {
		end := bytes.IndexByte(b[valid:], '\n')
		if end < 0 {
			return int64(valid)
		}
		e, err := decodeLine(b[valid : valid+end])
		if err != nil {
			return int64(valid)
		}
		o.apply(e)
		valid += end + 1
	}
}

func (o *outbox) apply(e outboxEntry) {
	switch {
	case e.Head != nil:
		o.next = max(e.Head.Next, 1)
		if e.Head.Judged != nil {
			o.judged = e.Head.Judged
		}
	case e.Report != nil:
		o.pending = append(o.pending, *e.Report)
		o.next = max(o.next, e.Report.Seq+1)
		if e.Report.Status.Terminal() {
			o.judged[e.Report.key()] = e.Report.Seq
		}
	case e.Ack > 0:
		o.cursor = max(o.cursor, e.Ack)
		for len(o.pending) > 0 && o.pending[0].Seq <= e.Ack {
			o.pending = o.pending[1:]
		}
	}
}

func (r Report) key() string { return r.JobID + "#" + strconv.Itoa(r.Attempt) }

// progress queues a report that a later one makes needless.
func (o *outbox) progress(jobID string, attempt int, details map[string]string) error {
	return o.queue(Report{JobID: jobID, Attempt: attempt, Status: ota.InProgress, Details: details})
}

// queue queues any report but a verdict.
func (o *outbox) queue(r Report) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.add(r)
}

// verdict queues how an attempt ended, once: a second call for the same attempt
// does nothing.
func (o *outbox) verdict(v verdict) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := Report{JobID: v.JobID, Attempt: v.Attempt, Status: v.Status, Details: v.Details}
	if _, queued := o.judged[r.key()]; queued {
		return nil
	}
	return o.add(r)
}

// position is the cursor, for again.
func (o *outbox) position() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursor
}

// again queues a verdict that the server asked for once more at cursor asked,
// unless it is still on its way or reports were delivered since: then the
// server may have it already, and will ask again if not.
func (o *outbox) again(v verdict, asked int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cursor != asked {
		return nil
	}
	r := Report{JobID: v.JobID, Attempt: v.Attempt, Status: v.Status, Details: v.Details}
	for _, p := range o.pending {
		if p.key() == r.key() && p.Status.Terminal() {
			return nil
		}
	}
	return o.add(r)
}

func (o *outbox) add(r Report) error {
	r.Seq = o.next
	if err := o.append(outboxEntry{Report: &r}); err != nil {
		return err
	}
	o.shed()
	o.kick()
	return nil
}

// shed keeps the number of pending reports within the limit. It is undone by a
// restart before the next rewrite, which then sheds again.
func (o *outbox) shed() {
	for len(o.pending) > MaxPending {
		victim := 0
		for i, p := range o.pending {
			if !p.Status.Terminal() {
				victim = i
				break
			}
		}
		o.pending = append(o.pending[:victim:victim], o.pending[victim+1:]...)
	}
}

// head returns the oldest undelivered report.
func (o *outbox) head() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending) == 0 {
		return Report{}, false
	}
	return o.pending[0], true
}

// len is the number of undelivered reports.
func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending)
}

// delivered moves the cursor past a report.
func (o *outbox) delivered(seq int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.append(outboxEntry{Ack: seq})
}

// append makes an entry durable and then applies it.
func (o *outbox) append(e outboxEntry) error {
	line, err := encodeLine(e)
	if err != nil {
		return err
	}
	if o.size+int64(len(line)) > maxOutboxBytes {
		if err := o.rewrite(); err != nil {
			return fmt.Errorf("rewrite outbox: %w", err)
		}
	}
	if _, err := o.f.WriteAt(line, o.size); err != nil {
		return fmt.Errorf("write outbox: %w", err)
	}
	if err := o.f.Sync(); err != nil {
		return fmt.Errorf("write outbox: %w", err)
	}
	o.size += int64(len(line))
	o.apply(e)
	return nil
}

// rewrite replaces the file by one that holds only what is still needed.
func (o *outbox) rewrite() error {
	for len(o.judged) > MaxHistory {
		oldest := ""
		for k, seq := range o.judged {
			if oldest == "" || seq < o.judged[oldest] {
				oldest = k
			}
		}
		delete(o.judged, oldest)
	}
	all, err := encodeLine(outboxEntry{Head: &outboxHead{Next: o.next, Judged: o.judged}})
	if err != nil {
		return err
	}
	for i := range o.pending {
		line, err := encodeLine(outboxEntry{Report: &o.pending[i]})
		if err != nil {
			return err
		}
		all = append(all, line...)
	}
	if err := disk.WriteFile(o.fsys, o.dir, "outbox", all, 0o600); err != nil {
		return err
	}
	old := o.f
	if err := o.open(); err != nil {
		return err
	}
	o.size = int64(len(all))
	return old.Close()
}

// kick has the outbox looked at now.
func (o *outbox) kick() { signal(o.added) }

func (o *outbox) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.f.Close()
}

func encodeLine(e outboxEntry) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(b, castagnoli), b), nil
}

func decodeLine(b []byte) (outboxEntry, error) {
	var e outboxEntry
	if len(b) < 10 || b[8] != ' ' {
		return e, errors.New("not an outbox line")
	}
	sum, err := strconv.ParseUint(string(b[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(b[9:], castagnoli) {
		return e, errors.New("outbox line: checksum differs")
	}
	if err := json.Unmarshal(b[9:], &e); err != nil {
		return e, fmt.Errorf("outbox line: %w", err)
	}
	return e, nil
}
