package health

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	kernelHead = 64 << 10
	// maxKernel bounds an unpacked kernel.
	maxKernel = 1 << 30
)

// ErrKernel: the image is not a whole Linux kernel.
var ErrKernel = errors.New("not a complete Linux kernel")

func notKernel(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrKernel, fmt.Sprintf(format, args...))
}

func checkKernelFile(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return CheckKernel(ctx, f)
}

// CheckKernel reads r to its end and reports whether it is a whole Linux kernel:
// an arm64 Image, an x86 bzImage or an arm zImage, plain or in gzip. What the
// headers promise must be there: the raw data of every section of the PE/EFI
// stub, the sizes of the boot protocol, and gzip's checksum. So a kernel that
// was cut short fails, and the error says where.
func CheckKernel(ctx context.Context, r io.Reader) error {
	in := bufio.NewReaderSize(ctxReader{ctx, r}, kernelHead)
	if magic, _ := in.Peek(2); string(magic) == "\x1f\x8b" {
		z, err := gzip.NewReader(in)
		if err != nil {
			return notKernel("gzip: %v", err)
		}
		return checkPlain(z)
	}
	return checkPlain(in)
}

func checkPlain(r io.Reader) error {
	head := make([]byte, kernelHead)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return notKernel("%v", err)
	}
	// A gzip stream that was cut short reports it here once more.
	rest, err := io.Copy(io.Discard, io.LimitReader(r, maxKernel))
	if err != nil {
		return notKernel("after %d bytes: %v", int64(n)+rest, err)
	}
	if rest == maxKernel {
		return notKernel("over %d bytes", int64(maxKernel))
	}
	return checkHead(head[:n], int64(n)+rest)
}

// checkHead compares a kernel's first bytes with its size.
func checkHead(head []byte, size int64) error {
	switch {
	case len(head) >= 64 && string(head[56:60]) == "ARM\x64":
		return checkARM64(head, size)
	case len(head) >= 0x210 && string(head[0x202:0x206]) == "HdrS":
		return checkX86(head, size)
	case len(head) >= 0x30 && binary.LittleEndian.Uint32(head[0x24:]) == 0x016f2818:
		return checkZImage(head, size)
	}
	return notKernel("no arm64, x86 or arm kernel header in %d bytes", size)
}

// checkARM64 follows the kernel's Documentation/arch/arm64/booting: image_size
// at 16 counts the memory from the image's start to the end of its bss.
func checkARM64(head []byte, size int64) error {
	memory := binary.LittleEndian.Uint64(head[16:])
	if memory > maxKernel {
		return notKernel("arm64: image size %d in the header", memory)
	}
	if string(head[:2]) == "MZ" {
		if err := checkPE(head, size); err != nil {
			return err
		}
	}
	if memory == 0 {
		return nil // before Linux 3.17
	}
	if uint64(size) > memory {
		return notKernel("arm64: %d bytes, but the header says %d with its bss", size, memory)
	}
	if uint64(size) < memory/2 {
		return notKernel("arm64: cut short: %d bytes of an image of %d", size, memory)
	}
	return nil
}

// checkX86 follows Documentation/arch/x86/boot: setup sectors, then syssize in
// units of 16 bytes.
func checkX86(head []byte, size int64) error {
	setup := int64(head[0x1f1])
	if setup == 0 {
		setup = 4
	}
	want := (setup+1)*512 + int64(binary.LittleEndian.Uint32(head[0x1f4:]))*16
	if size < want {
		return notKernel("x86: cut short: %d bytes of %d", size, want)
	}
	if string(head[:2]) == "MZ" {
		return checkPE(head, size)
	}
	return nil
}

func checkZImage(head []byte, size int64) error {
	start, end := int64(binary.LittleEndian.Uint32(head[0x28:])), int64(binary.LittleEndian.Uint32(head[0x2c:]))
	if end <= start {
		return notKernel("zImage: it ends at %d before it starts at %d", end, start)
	}
	if size < end-start {
		return notKernel("zImage: cut short: %d bytes of %d", size, end-start)
	}
	return nil
}

// checkPE checks that every section of a PE image lies inside the file.
func checkPE(head []byte, size int64) error {
	const coffHeader, sectionHeader, maxSections = 24, 40, 96
	at := int64(binary.LittleEndian.Uint32(head[0x3c:]))
	if at+coffHeader > int64(len(head)) || !bytes.Equal(head[at:at+4], []byte("PE\x00\x00")) {
		return notKernel("EFI stub: no PE header at %d", at)
	}
	count := int64(binary.LittleEndian.Uint16(head[at+6:]))
	optional := int64(binary.LittleEndian.Uint16(head[at+20:]))
	table := at + coffHeader + optional
	if count == 0 || count > maxSections || table+count*sectionHeader > int64(len(head)) {
		return notKernel("EFI stub: %d sections", count)
	}
	code := int64(0)
	for i := range count {
		s := head[table+i*sectionHeader:]
		name := string(bytes.TrimRight(s[:8], "\x00"))
		length, offset := int64(binary.LittleEndian.Uint32(s[16:])), int64(binary.LittleEndian.Uint32(s[20:]))
		if length > 0 && offset+length > size {
			return notKernel("cut short: section %q ends at %d, the image at %d", name, offset+length, size)
		}
		if name == ".text" {
			code = length
		}
	}
	if code == 0 {
		return notKernel("EFI stub: no code section")
	}
	return nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
