# Bash completion for llms.
_llms_contexts()
{
    local words=() i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --app | --address) words+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}") ;;
        esac
    done
    llms "${words[@]}" ls 2>/dev/null | sed -n '2,$s/ .*//p'
}

_llms()
{
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local commands="chat call new ls show rm fork prepare status budget models tokenize detokenize"
    local options="--app --address --json --help --version" command="" i
    local generate="--stats --max-tokens --temperature --top-k --top-p --min-p --repeat-penalty --seed --stop --when-full"
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ " $commands " == *" ${COMP_WORDS[i]} "* && ${COMP_WORDS[i - 1]} != --app ]]; then
            command=${COMP_WORDS[i]}
            break
        fi
    done
    case $previous in
    --ctx)
        mapfile -t COMPREPLY < <(compgen -W "$(_llms_contexts)" -- "$word")
        return
        ;;
    --when-full)
        mapfile -t COMPREPLY < <(compgen -W "slide refuse" -- "$word")
        return
        ;;
    --app | --address | --name | --system | --max-tokens | --temperature | --top-k | --top-p | --min-p | \
        --repeat-penalty | --seed | --stop)
        return
        ;;
    esac
    case $command in
    chat) options+=" --ctx --name --system $generate" ;;
    call) options+=" $generate" ;;
    new) options+=" --name --system" ;;
    fork) options+=" --name" ;;
    show) options+=" --turns" ;;
    tokenize) options+=" --special" ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word")
    elif [[ $command == rm || ($command == @(call|show|fork|prepare) && $previous == "$command") ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_llms_contexts)" -- "$word")
    fi
}
complete -F _llms llms
