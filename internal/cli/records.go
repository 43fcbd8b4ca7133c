package cli

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
)

// readRecords reads recorded flows, one JSON object a line. A line that cannot be read is an error with its number:
// what is learnt or compared from half a file would look like the whole.
func readRecords(cmd *cobra.Command, path string) ([]model.RecordedFlow, error) {
	in, size, err := open(cmd, path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	bar := newProgress(cmd.ErrOrStderr(), "reading flows", size)
	defer bar.finish()
	name := path
	if path == "-" {
		name = stdinName
	}
	var (
		records []model.RecordedFlow
		parser  flowline.Parser
		r       = bufio.NewReaderSize(in, maxLine)
	)
	for number := 1; ; number++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, usagef("%s:%d: the line is longer than %d bytes; are these JSON lines?", name, number, maxLine)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, cannotRead(err)
		}
		bar.add(int64(len(line)))
		if number == 1 {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			records = append(records, model.RecordedFlow{})
			if e := parser.ParseRecord(line, &records[len(records)-1]); e != nil {
				return nil, usagef("%s:%d: %w", name, number, e)
			}
		}
		if err != nil {
			return records, nil
		}
	}
}

// records asks the controller for recorded flows.
func (c *client) records(cmd *cobra.Command, req *pb.ListFlowsRequest) ([]model.RecordedFlow, error) {
	bar := newProgress(cmd.ErrOrStderr(), "asking for flows", 0)
	defer bar.finish()
	var records []model.RecordedFlow
	err := c.edges(cmd.Context(), req, func(r *pb.ListFlowsResponse) error {
		for _, e := range r.Edges {
			record, err := recordOf(e)
			if err != nil {
				return badEdge(c, err)
			}
			records = append(records, *record)
		}
		return nil
	})
	return records, err
}
