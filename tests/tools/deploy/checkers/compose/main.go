// Reads a compose file as `docker compose config --quiet` does, with the library that Docker Compose reads it with.
//
//	compose FILE
//
// It prints the first fault. Not checked here: whether images exist, and what happens in them.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Println("usage: compose FILE")
		os.Exit(2)
	}
	if err := check(os.Args[1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func check(file string) error {
	// Relative paths and the .env file are looked for beside the file, as Docker Compose does.
	options, err := cli.NewProjectOptions(
		[]string{file},
		cli.WithWorkingDirectory(filepath.Dir(file)),
		cli.WithOsEnv,
		cli.WithDotEnv,
		cli.WithProfiles([]string{"*"}),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	if len(project.Services) == 0 {
		return fmt.Errorf("%s has no services", file)
	}
	for name, service := range project.Services {
		if service.Image == "" && service.Build == nil {
			return fmt.Errorf("service %q has neither an image nor a build context", name)
		}
		for _, volume := range service.Volumes {
			if _, err := os.Stat(volume.Source); volume.Type == "bind" && err != nil {
				return fmt.Errorf("service %q: %w", name, err)
			}
		}
	}
	return nil
}
