package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/otad/otad/agent/disk"
)

// twin is a small value kept in two checksummed copies, name.0 and name.1. A
// store overwrites the older one, so that a torn write leaves the value before.
// Layout of a copy: magic (4), sequence (8), sha256 of sequence and body (32),
// body.
type twin struct {
	fsys  disk.FS
	dir   string
	name  string
	limit int64 // of the body
	seq   uint64
	older int // the copy that the next store overwrites
}

const (
	twinMagic  = "OTW1"
	twinHeader = 4 + 8 + sha256.Size
)

// load returns the valid bodies, the newest first, and whether a copy is there
// that is not valid.
func (t *twin) load() (bodies [][]byte, damaged bool, err error) {
	var seqs [2]uint64
	var body [2][]byte
	for i := range 2 {
		b, err := disk.ReadFile(t.fsys, t.path(i), t.limit+twinHeader)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			seqs[i], body[i], err = decodeTwin(b)
		}
		damaged = damaged || err != nil
	}
	newest := 0
	if seqs[1] > seqs[0] {
		newest = 1
	}
	t.seq, t.older = seqs[newest], 1-newest
	for _, i := range []int{newest, 1 - newest} {
		if body[i] != nil {
			bodies = append(bodies, body[i])
		}
	}
	return bodies, damaged, nil
}

// store makes b the newest body, on the disk when it returns.
func (t *twin) store(b []byte) error {
	if int64(len(b)) > t.limit {
		return fmt.Errorf("store %s: %d bytes: at most %d", t.name, len(b), t.limit)
	}
	if err := t.write(encodeTwin(t.seq+1, b)); err != nil {
		return fmt.Errorf("store %s: %w", t.name, err)
	}
	t.seq++
	t.older = 1 - t.older
	return nil
}

func (t *twin) write(b []byte) error {
	f, err := t.fsys.OpenFile(t.path(t.older), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return t.fsys.SyncDir(t.dir)
}

func (t *twin) path(i int) string { return fmt.Sprintf("%s/%s.%d", t.dir, t.name, i) }

func encodeTwin(seq uint64, body []byte) []byte {
	b := make([]byte, twinHeader, twinHeader+len(body))
	copy(b, twinMagic)
	binary.LittleEndian.PutUint64(b[4:], seq)
	sum := twinSum(b[4:12], body)
	copy(b[12:], sum[:])
	return append(b, body...)
}

func decodeTwin(b []byte) (uint64, []byte, error) {
	if len(b) < twinHeader || string(b[:4]) != twinMagic {
		return 0, nil, errors.New("not a stored copy")
	}
	if sum := twinSum(b[4:12], b[twinHeader:]); string(sum[:]) != string(b[12:twinHeader]) {
		return 0, nil, errors.New("stored copy: checksum differs")
	}
	return binary.LittleEndian.Uint64(b[4:]), b[twinHeader:], nil
}

func twinSum(seq, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(seq)
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}
