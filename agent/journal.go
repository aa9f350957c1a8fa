package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/otad/otad/agent/disk"
)

// Layout of the journal file: two slots of journalSlot bytes, written in turn.
// Each holds magic (4), sequence (8), body length (4), CRC32C over sequence,
// length and body (4), all little endian, then the body; the rest is zero.
const (
	journalSlot   = 4096
	journalHeader = 20
	maxRecord     = journalSlot - journalHeader
	journalMagic  = "OTJ1"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrJournal: no slot of the journal holds a valid record though something was
// written there.
var ErrJournal = errors.New("journal is damaged")

// journal is the one place that says what the agent intends. Every store is on
// the disk when it returns, and a torn one leaves the record before it.
type journal struct {
	f   disk.File
	seq uint64
}

// openJournal opens or creates the file. The last record comes back; the zero
// Record of a new journal is in IDLE. ErrJournal comes beside a usable journal.
func openJournal(fsys disk.FS, dir string) (*journal, Record, error) {
	fresh := Record{State: StateIdle}
	name := dir + "/journal"
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|disk.Dsync, 0o600)
	if err != nil {
		return nil, fresh, err
	}
	if err := fullSize(fsys, f, dir); err != nil {
		return nil, fresh, errors.Join(fmt.Errorf("create %s: %w", name, err), f.Close())
	}
	j := &journal{f: f}
	rec, found, damaged := fresh, false, false
	for i := range 2 {
		b := make([]byte, journalSlot)
		if _, err := f.ReadAt(b, int64(i)*journalSlot); err != nil {
			return nil, fresh, errors.Join(fmt.Errorf("read %s: %w", name, err), f.Close())
		}
		seq, r, err := decodeSlot(b)
		switch {
		case err != nil:
			damaged = damaged || len(bytes.Trim(b, "\x00")) > 0
		case !found || seq > j.seq:
			j.seq, rec, found = seq, r, true
		}
	}
	if !found && damaged {
		return j, fresh, ErrJournal
	}
	return j, rec, nil
}

func fullSize(fsys disk.FS, f disk.File, dir string) error {
	size, err := f.Size()
	if err != nil || size == 2*journalSlot {
		return err
	}
	if _, err := f.WriteAt(make([]byte, 2*journalSlot), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// store makes r the journal's content.
func (j *journal) store(r Record) error {
	b, err := encodeSlot(j.seq+1, r)
	if err != nil {
		return err
	}
	j.seq++
	if _, err := j.f.WriteAt(b, int64(j.seq%2)*journalSlot); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func (j *journal) close() error { return j.f.Close() }

func encodeSlot(seq uint64, r Record) ([]byte, error) {
	body, err := encodeRecord(r)
	if err != nil {
		return nil, err
	}
	if len(body) > maxRecord {
		return nil, fmt.Errorf("journal record of %d bytes: at most %d", len(body), maxRecord)
	}
	b := make([]byte, journalSlot)
	copy(b, journalMagic)
	binary.LittleEndian.PutUint64(b[4:], seq)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(body)))
	copy(b[journalHeader:], body)
	binary.LittleEndian.PutUint32(b[16:], slotSum(b, len(body)))
	return b, nil
}

func decodeSlot(b []byte) (uint64, Record, error) {
	if len(b) != journalSlot || string(b[:4]) != journalMagic {
		return 0, Record{}, errors.New("not a journal record")
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n > maxRecord {
		return 0, Record{}, fmt.Errorf("journal record of %d bytes: at most %d", n, maxRecord)
	}
	if binary.LittleEndian.Uint32(b[16:]) != slotSum(b, int(n)) {
		return 0, Record{}, errors.New("journal record: checksum differs")
	}
	r, err := decodeRecord(b[journalHeader : journalHeader+int(n)])
	return binary.LittleEndian.Uint64(b[4:]), r, err
}

func slotSum(b []byte, n int) uint32 {
	sum := crc32.Update(0, castagnoli, b[4:16])
	return crc32.Update(sum, castagnoli, b[journalHeader:journalHeader+n])
}
