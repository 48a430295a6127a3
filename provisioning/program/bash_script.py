"""What ``--install-completion`` gives bash: Typer's script, except that nothing is offered where no file may stand.

Where the program has no answer, bash offers files, as it was told by ``-o default``. Whether one may stand there is
known only when it is asked for: the program says so by its exit code (`provisioning.program.shell_completion`).
"""

from __future__ import annotations

from typing import Final

BASH_SCRIPT: Final = r"""
%(complete_func)s() {
    local IFS=$'\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" \
                   COMP_CWORD=$COMP_CWORD \
                   %(autocomplete_var)s=complete_bash "$1" ) ) || compopt +o default
    return 0
}

complete -o default -F %(complete_func)s %(prog_name)s
"""
