// Package disktest has a disk in memory whose power can be cut after any single
// operation. It keeps what was written apart from what is durable: bytes are
// durable after Sync (or with Dsync), names after SyncDir. A crash keeps all,
// none, or a random part of what was not.
package disktest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"sync"

	"github.com/otad/otad/agent/disk"
)

// ErrPower is what every operation returns once the power is cut.
var ErrPower = errors.New("power is cut")

// Survival says what a crash leaves of what was written but not yet durable.
type Survival int

// Nothing, everything, or single sectors and the first few name changes.
const (
	Lost Survival = iota
	Kept
	Torn
)

const sector = 512

type inode struct {
	data, durable []byte
}

type entry struct {
	node *inode
	link string
	dir  bool
}

type nameOp struct {
	dir   string
	apply func(names map[string]entry)
}

// Mem is a disk.FS in memory; safe for concurrent use.
type Mem struct {
	mu      sync.Mutex
	names   map[string]entry
	durable map[string]entry
	pending []nameOp
	ops     int
	cutAt   int // the power goes during this operation, counted from 1; 0: never
	dead    bool
	// Log, when set, is called for each operation that changes the disk.
	Log func(op string)
}

// NewMem returns an empty disk.
func NewMem() *Mem {
	return &Mem{names: map[string]entry{"/": {dir: true}}, durable: map[string]entry{"/": {dir: true}}}
}

// CutAt cuts the power during the n-th operation from now on; 0 never does.
func (m *Mem) CutAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cutAt = 0
	if n > 0 {
		m.cutAt = m.ops + n
	}
}

// Dead reports whether the power was cut.
func (m *Mem) Dead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// Ops is the number of operations that changed the disk.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Crash cuts the power now and returns the disk as it is found afterwards.
func (m *Mem) Crash(s Survival, seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := m.survivingNames(s, rnd)
	after := NewMem()
	nodes := map[*inode]*inode{}
	for name, e := range names {
		if e.node != nil {
			if nodes[e.node] == nil {
				data := e.node.surviving(s, rnd)
				nodes[e.node] = &inode{data: data, durable: append([]byte(nil), data...)}
			}
			e.node = nodes[e.node]
		}
		after.names[name], after.durable[name] = e, e
	}
	return after
}

// Clone returns another disk with what this one holds, all of it durable.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	dead := m.dead
	m.mu.Unlock()
	after := m.Crash(Kept, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = dead
	return after
}

func (m *Mem) survivingNames(s Survival, rnd *rand.Rand) map[string]entry {
	names := map[string]entry{}
	for k, v := range m.durable {
		names[k] = v
	}
	n := 0
	switch s {
	case Kept:
		n = len(m.pending)
	case Torn:
		n = rnd.IntN(len(m.pending) + 1)
	}
	for _, op := range m.pending[:n] {
		op.apply(names)
	}
	return names
}

func (n *inode) surviving(s Survival, rnd *rand.Rand) []byte {
	switch s {
	case Lost:
		return append([]byte(nil), n.durable...)
	case Kept:
		return append([]byte(nil), n.data...)
	}
	out := append([]byte(nil), n.data...)
	if rnd.IntN(2) == 0 && len(n.durable) < len(out) {
		out = out[:len(n.durable)] // the new size did not make it
	}
	for at := 0; at < len(out); at += sector {
		if rnd.IntN(2) == 0 {
			continue
		}
		end := min(at+sector, len(out))
		clear(out[at:end])
		if at < len(n.durable) {
			copy(out[at:end], n.durable[at:])
		}
	}
	return out
}

// step counts one operation; cut says that the power goes in the middle of it.
func (m *Mem) step(op, name string) (cut bool, err error) {
	if m.dead {
		return false, fmt.Errorf("%s %s: %w", op, name, ErrPower)
	}
	m.ops++
	if m.Log != nil {
		m.Log(op + " " + name)
	}
	if m.cutAt != 0 && m.ops >= m.cutAt {
		m.dead = true
		return true, nil
	}
	return false, nil
}

func power(op, name string) error { return fmt.Errorf("%s %s: %w", op, name, ErrPower) }

func (m *Mem) change(op, name string, apply func(map[string]entry)) error {
	cut, err := m.step(op, name)
	if err != nil {
		return err
	}
	apply(m.names)
	m.pending = append(m.pending, nameOp{dir: path.Dir(name), apply: apply})
	if cut {
		return power(op, name)
	}
	return nil
}

// OpenFile implements disk.FS.
func (m *Mem) OpenFile(name string, flag int, _ fs.FileMode) (disk.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, power("open", name)
	}
	name = path.Clean(name)
	for e := m.names[name]; e.link != ""; e = m.names[name] {
		name = path.Join(path.Dir(name), e.link)
	}
	e, ok := m.names[name]
	if ok && e.dir {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is a directory")}
	}
	if !ok {
		if flag&os.O_CREATE == 0 || !m.names[path.Dir(name)].dir {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		e = entry{node: &inode{}}
		if err := m.change("create", name, func(n map[string]entry) { n[name] = e }); err != nil {
			return nil, err
		}
	}
	f := &file{m: m, name: name, node: e.node, dsync: flag&disk.Dsync != 0}
	if flag&os.O_TRUNC != 0 && len(e.node.data) > 0 {
		if err := f.truncate(0); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Rename implements disk.FS.
func (m *Mem) Rename(oldName, newName string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.names[oldName]
	if !ok && !m.dead {
		return &fs.PathError{Op: "rename", Path: oldName, Err: fs.ErrNotExist}
	}
	return m.change("rename", newName, func(n map[string]entry) {
		delete(n, oldName)
		n[newName] = e
	})
}

// Symlink implements disk.FS.
func (m *Mem) Symlink(target, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.names[name]; ok && !m.dead {
		return &fs.PathError{Op: "symlink", Path: name, Err: fs.ErrExist}
	}
	return m.change("symlink", name, func(n map[string]entry) { n[name] = entry{link: target} })
}

// Readlink implements disk.FS.
func (m *Mem) Readlink(name string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return "", power("readlink", name)
	}
	e, ok := m.names[name]
	if !ok || e.link == "" {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	}
	return e.link, nil
}

// Remove implements disk.FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.names[name]; !ok && !m.dead {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return m.change("remove", name, func(n map[string]entry) { delete(n, name) })
}

// MkdirAll implements disk.FS.
func (m *Mem) MkdirAll(name string, _ fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return power("mkdir", name)
	}
	for name = path.Clean(name); name != "/" && name != "."; name = path.Dir(name) {
		m.names[name], m.durable[name] = entry{dir: true}, entry{dir: true}
	}
	return nil
}

// SyncDir implements disk.FS.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cut, err := m.step("syncdir", name)
	if err != nil {
		return err
	}
	if cut {
		return power("syncdir", name)
	}
	var rest []nameOp
	for _, op := range m.pending {
		if op.dir == path.Clean(name) {
			op.apply(m.durable)
		} else {
			rest = append(rest, op)
		}
	}
	m.pending = rest
	return nil
}

// Lock implements disk.FS; the disk is one process's anyway.
func (m *Mem) Lock(string) (io.Closer, error) { return &file{m: m}, nil }

// Free implements disk.FS.
func (m *Mem) Free(string) (int64, error) { return 1 << 40, nil }

type file struct {
	m     *Mem
	name  string
	node  *inode
	dsync bool
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, power("read", f.name)
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	cut, err := f.m.step("write", f.name)
	if err != nil {
		return 0, err
	}
	if cut {
		p = p[:len(p)/2] // half of the write reaches the disk
	}
	f.node.data = put(f.node.data, p, off)
	if f.dsync {
		f.node.durable = put(f.node.durable, p, off)
	}
	if cut {
		return len(p), power("write", f.name)
	}
	return len(p), nil
}

func put(b, p []byte, off int64) []byte {
	if need := int(off) + len(p); need > len(b) {
		b = append(b, make([]byte, need-len(b))...)
	}
	copy(b[off:], p)
	return b
}

func (f *file) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	cut, err := f.m.step("sync", f.name)
	if err != nil {
		return err
	}
	if cut {
		return power("sync", f.name)
	}
	f.node.durable = append(f.node.durable[:0], f.node.data...) // nobody else holds it: a crash copies
	return nil
}

func (f *file) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.truncate(size)
}

func (f *file) truncate(size int64) error {
	cut, err := f.m.step("truncate", f.name)
	if err != nil {
		return err
	}
	if cut {
		return power("truncate", f.name)
	}
	if int(size) < len(f.node.data) {
		f.node.data = append([]byte(nil), f.node.data[:size]...)
	} else {
		f.node.data = put(f.node.data, nil, size)
	}
	return nil
}

func (f *file) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, power("stat", f.name)
	}
	return int64(len(f.node.data)), nil
}

func (f *file) Close() error { return nil }
func (f *file) DropCache()   {}
