package health

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// arm64Kernel makes a small arm64 Image with an EFI stub: two sections that
// fill the file, and a bss behind it.
func arm64Kernel() []byte {
	const pe, textAt, textLen, dataLen = 0x40, 0x1000, 0x20000, 0x3200
	b := make([]byte, textAt+textLen+dataLen)
	copy(b, "MZ")
	le := binary.LittleEndian
	le.PutUint64(b[16:], uint64(len(b)+0x1000))
	copy(b[56:], "ARM\x64")
	le.PutUint32(b[0x3c:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+4:], 0xaa64)
	le.PutUint16(b[pe+6:], 2)
	le.PutUint16(b[pe+20:], 160)
	section := func(at int, name string, offset, length uint32) {
		copy(b[at:], name)
		le.PutUint32(b[at+16:], length)
		le.PutUint32(b[at+20:], offset)
	}
	section(pe+24+160, ".text", textAt, textLen)
	section(pe+24+200, ".data", textAt+textLen, dataLen)
	for i := textAt; i < len(b); i++ {
		b[i] = byte(i * 7)
	}
	return b
}

func x86Kernel() []byte {
	b := make([]byte, 5*512+4096*16)
	b[0x1f1] = 4
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(b[0x1f4:], 4096)
	return b
}

func zImage() []byte {
	b := make([]byte, 70_000)
	binary.LittleEndian.PutUint32(b[0x24:], 0x016f2818)
	binary.LittleEndian.PutUint32(b[0x2c:], uint32(len(b)))
	return b
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func checkBytes(b []byte) error { return CheckKernel(context.Background(), bytes.NewReader(b)) }

func TestWholeKernels(t *testing.T) {
	plain := arm64Kernel()
	copy(plain, "\x00\x00") // no EFI stub
	for name, b := range map[string][]byte{
		"arm64": arm64Kernel(), "arm64 without stub": plain, "x86": x86Kernel(), "zImage": zImage(), "gzip": gzipped(t, arm64Kernel()),
	} {
		if err := checkBytes(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTruncatedKernels(t *testing.T) {
	for name, whole := range map[string][]byte{"arm64": arm64Kernel(), "x86": x86Kernel(), "zImage": zImage(), "gzip": gzipped(t, arm64Kernel())} {
		for _, n := range []int{0, 1, 2, 10, 63, 64, 300, 1000, len(whole) / 2, len(whole) - 512, len(whole) - 1} {
			if err := checkBytes(whole[:n]); !errors.Is(err, ErrKernel) {
				t.Errorf("%s of %d bytes cut to %d: %v", name, len(whole), n, err)
			}
		}
	}
}

func TestDamagedHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(b []byte)
		want string
	}{
		"no kernel":        {func(b []byte) { b[56] = 0 }, "no arm64, x86 or arm kernel header"},
		"no PE header":     {func(b []byte) { b[0x40] = 0 }, "no PE header"},
		"PE far away":      {func(b []byte) { b[0x3f] = 0xff }, "no PE header"},
		"no sections":      {func(b []byte) { b[0x46] = 0 }, "0 sections"},
		"no code":          {func(b []byte) { b[0x40+24+160] = 'x' }, "no code section"},
		"section too long": {func(b []byte) { b[0x40+24+200+18] = 1 }, `section ".data" ends`},
		"image too large":  {func(b []byte) { b[23] = 1 }, "image size"},
		"image too small":  {func(b []byte) { b[18] = 0 }, "header says"},
		"mostly bss":       {func(b []byte) { b[18] = 0x80 }, "cut short"},
	} {
		b := arm64Kernel()
		c.edit(b)
		if err := checkBytes(b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	z := gzipped(t, arm64Kernel())
	z[len(z)-5] ^= 1
	if err := checkBytes(z); !errors.Is(err, ErrKernel) {
		t.Errorf("gzip with a wrong checksum: %v", err)
	}
}

// TestRealKernel tries the kernel that OTAD_KERNEL names, if any, whole and cut
// short.
func TestRealKernel(t *testing.T) {
	name := os.Getenv("OTAD_KERNEL")
	if name == "" {
		t.Log("OTAD_KERNEL names no kernel: only made ones were tried")
		return
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBytes(b); err != nil {
		t.Error(err)
	}
	for _, n := range []int{len(b) / 4, len(b) / 2, len(b) * 9 / 10, len(b) - 4096} {
		err := checkBytes(b[:n])
		if err == nil {
			t.Errorf("cut to %d of %d bytes and taken", n, len(b))
		}
		t.Log(err)
	}
}

func FuzzCheckKernel(f *testing.F) {
	f.Add(arm64Kernel()[:0x2000])
	f.Add(x86Kernel()[:0x1000])
	f.Add(zImage()[:0x100])
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkBytes(b); err != nil && !errors.Is(err, ErrKernel) {
			t.Fatal(err)
		}
	})
}
