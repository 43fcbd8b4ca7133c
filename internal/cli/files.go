package cli

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/docdir"
	"bulkhead/internal/kube"
)

// stdinName is how positions in standard input are shown.
const stdinName = "<stdin>"

// readFiles reads what -f names: files, directories with everything below them that ends in .yaml or .yml, and "-"
// for standard input. Hidden files and directories are left out.
func readFiles(cmd *cobra.Command, paths []string) ([]policy.File, error) {
	var files []policy.File
	for _, path := range paths {
		more, err := readPath(cmd, path)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

func readPath(cmd *cobra.Command, path string) ([]policy.File, error) {
	if path == "-" {
		data, err := io.ReadAll(cmd.InOrStdin())
		if err != nil {
			return nil, cannotf("read standard input: %w", err)
		}
		return []policy.File{{Name: stdinName, Data: data}}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, cannotRead(err)
	}
	if !info.IsDir() {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, cannotRead(err)
		}
		return []policy.File{{Name: path, Data: data}}, nil
	}
	files, err := docdir.Read(path)
	switch {
	case errors.Is(err, docdir.ErrEmpty):
		return nil, usagef("%w", err)
	case err != nil:
		return nil, cannotRead(err)
	}
	return files, nil
}

// cannotRead says which file cannot be read; the error of the operating system names it already.
func cannotRead(err error) error { return cannotf("cannot read: %w", err) }

// open opens a file to be read as a stream, or standard input for "-". Its size is 0 if it is not known.
func open(cmd *cobra.Command, path string) (r io.ReadCloser, size int64, err error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, cannotRead(err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, cannotRead(err)
	}
	if info.IsDir() {
		f.Close()
		return nil, 0, usagef("%s is a directory; a file is needed", path)
	}
	if !info.Mode().IsRegular() {
		return f, 0, nil
	}
	return f, info.Size(), nil
}

// onlyOneStdin refuses two inputs that both want to be standard input.
func onlyOneStdin(paths ...string) error {
	n := 0
	for _, p := range paths {
		if p == "-" {
			n++
		}
	}
	if n > 1 {
		return usagef("only one input can be - (standard input)")
	}
	return nil
}

// parse parses the files: documents, and manifests of Kubernetes beside them. Every error is printed, one a line with
// its position; the error returned says what was not done because of them.
func parse(cmd *cobra.Command, files []policy.File, notDone string) (*model.Documents, error) {
	docs, _, err := kube.Load(files) // check shows the findings
	if err == nil {
		return docs, nil
	}
	problems := parseErrors(err)
	for _, e := range problems {
		complain(cmd, e.Error())
	}
	return nil, usagef("%s in the documents; %s", count(len(problems), "error"), notDone)
}

// parseErrors returns the single errors of kube.Load.
func parseErrors(err error) []*policy.Error {
	if all, ok := err.(policy.Errors); ok {
		return all
	}
	return []*policy.Error{{Msg: err.Error()}}
}

// documentsOnly refuses manifests of Kubernetes, which no controller takes.
func documentsOnly(files []policy.File) error {
	if pos, kind, ok := kube.First(files); ok {
		return usagef("%s: this is a manifest of Kubernetes (%s); the controller takes documents of Bulkhead only. Judge manifests offline: bulkhead check, test, eval, explain, diff and compile take them with -f", pos, kind)
	}
	return nil
}

// toProto returns the files as the API takes them.
func toProto(files []policy.File) []*pb.File {
	out := make([]*pb.File, len(files))
	for i, f := range files {
		out[i] = &pb.File{Name: f.Name, Content: string(f.Data)}
	}
	return out
}
