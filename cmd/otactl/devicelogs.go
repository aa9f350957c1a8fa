package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newDeviceLogsCmd(a *app) *cobra.Command {
	var out, command string
	cmd := &cobra.Command{
		Use: "logs ID", Short: "List what a device brought for collect-logs, or download it", Args: takes("ID"),
		Long: `logs lists the archives that a device uploaded, the newest first. With --out it
writes one of them into a file: the newest, or that of --command. The bytes are the
device's own (a tar in gzip, from our agent): nobody has looked at them. The server
keeps the newest 20 of a device, for 30 days.`,
		Example: `  otactl command run gw-1 collect-logs --wait && otactl device logs gw-1 --out gw-1.tgz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			uploads, err := c.uploads(cmd.Context(), &otadv1.ListUploadsRequest{DeviceId: args[0], RolloutId: command})
			if err != nil {
				return err
			}
			slices.SortStableFunc(uploads, func(x, y uploadView) int { return y.UploadedAt.Compare(*x.UploadedAt) })
			if out == "" {
				return printList(a, a.uploadTable(), uploads)
			}
			if len(uploads) == 0 {
				return hint(fail(exitNotFound, "device %s has brought nothing", args[0]), "otactl command run %s collect-logs --wait", args[0])
			}
			n, err := c.download(cmd.Context(), uploads[0], out)
			if err == nil {
				a.note("%s: %s of command %s", out, byteSize(n), uploads[0].Command)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the newest into this file, which must not exist")
	cmd.Flags().StringVar(&command, "command", "", "only those of the command with this id")
	return cmd
}

func (a *app) uploadTable() view[uploadView] {
	return view[uploadView]{
		name: func(u uploadView) string { return u.Command },
		columns: []column[uploadView]{
			{head: "COMMAND", cell: func(u uploadView) string { return u.Command }},
			{head: "ATTEMPT", cell: func(u uploadView) string { return number(u.Attempt) }},
			{head: "SIZE", cell: func(u uploadView) string { return byteSize(u.Bytes) }},
			{head: "UPLOADED", cell: func(u uploadView) string { return a.ago(u.UploadedAt) }},
		},
	}
}

// download writes an upload into a new file, private to its owner, that appears
// whole or not at all.
func (c *client) download(ctx context.Context, u uploadView, path string) (n int64, err error) {
	stream, err := c.commands.DownloadUpload(ctx, connect.NewRequest(&otadv1.DownloadUploadRequest{RolloutId: u.Command, DeviceId: u.Device, Attempt: u.Attempt}))
	if err != nil {
		return 0, c.lost(err)
	}
	defer func() { _ = stream.Close() }()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	for stream.Receive() {
		k, err := f.Write(stream.Msg().GetData())
		if n += int64(k); err != nil {
			return n, errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(c.lost(stream.Err()), f.Sync(), f.Close()); err != nil {
		return n, err
	}
	if n != u.Bytes {
		return n, io.ErrUnexpectedEOF
	}
	if err := os.Link(f.Name(), path); err != nil {
		return n, errors.New(strings.TrimPrefix(err.Error(), "link "+f.Name()+" "))
	}
	return n, syncDir(filepath.Dir(path))
}
